"""The store of fetched models: the right files, whatever the network does, each content once, for a whole group."""

import hashlib
import os
import random
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from ropewalk.cluster.errors import ConfigError, DataError
from ropewalk.cluster.hub import progress
from ropewalk.cluster.hub.choose import choose
from ropewalk.cluster.hub.lookup import look_up
from ropewalk.cluster.hub.names import HubName, parse_plain, parse_url
from ropewalk.cluster.hub.source import RemoteFile, Source
from ropewalk.cluster.hub.store import Store
from tests.fakes.hub import COMMIT, FakeHub, serving

URL = "{repo_id}/resolve/{revision}/{filename}"
WEIGHTS = random.Random(0).randbytes(3 << 20)
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b'{"model": {}}' * 2000,
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "modeling_own.py": b"raise SystemExit",
    "onnx/model.safetensors": b"another format",
}
ROWS = {f"data/{split}-0.parquet": split.encode() for split in ("train", "validation", "test")}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(FakeHub({"models/org/name": MODEL, "datasets/org/rows": {"README.md": b"-", **ROWS}})) as fake:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", fake.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{fake.address}/{URL}")
        yield fake


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://org/name", HubName(repository="org/name", is_dataset=False)),
        ("hf://org/name@refs/pr/2/", HubName(repository="org/name", is_dataset=False, revision="refs/pr/2")),
        ("hf://datasets/o/n@v1/d/*.parquet", HubName(repository="o/n", is_dataset=True, revision="v1", path="d/*.parquet")),
        ("hf://name", None),
        ("s3://org/name", None),
    ],
)
def test_a_url_names_repository_revision_and_path(text: str, name: HubName | None) -> None:
    assert parse_url(text) == name


def test_a_plain_name_is_one_relative_to_the_current_directory(tmp_path: Path) -> None:
    name = HubName(repository="org/name", is_dataset=False, revision="v1")
    assert parse_plain("org/name@v1", is_dataset=False) == name
    assert parse_plain(str(tmp_path / "org/name@v1"), is_dataset=False) == name
    for other in ("name", "a/b/c", "../name", "/org/name", str(tmp_path), "org/na me", "org/*.jsonl"):
        assert parse_plain(other, is_dataset=False) is None


def test_a_model_comes_without_pickles_and_code_by_one_request_for_its_list(hub: FakeHub, store: Store) -> None:
    version = look_up(HubName(repository="org/name", is_dataset=False), "model", "model.path: org/name", store)
    assert hub.requests == ["/api/models/org/name"]
    assert version.location == f"hf://org/name@{COMMIT}"
    version.fetch(store)
    folder = store.root / version.path
    assert names_in(folder) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert all((folder / name).read_bytes() == MODEL[name] for name in names_in(folder))
    count = len(hub.requests)
    version.fetch(store)
    assert len(hub.requests) == count, "a complete version is fetched again"
    tokenizer = look_up(HubName(repository="org/name", is_dataset=False), "tokenizer", "tokenizer.path: org/name", store)
    tokenizer.fetch(store)
    assert names_in(store.root / tokenizer.path) == {"config.json", "tokenizer.json"}
    assert hub.sent_bytes[f"{COMMIT}/tokenizer.json"] == len(MODEL["tokenizer.json"]), "a content is fetched once"


@pytest.mark.parametrize("fault", ["none", "breaks", "limits", "no headers", "breaks without headers", "no ranges"])
def test_it_is_the_same_bytes_whatever_the_network_does(hub: FakeHub, store: Store, fault: str) -> None:
    version = look_up("hf://org/name", "model", "model.path: hf://org/name", store)
    if "breaks" in fault:
        hub.faults.break_every_bytes = 700_000
    if "headers" in fault:
        hub.faults.leave_out_headers = True
    if fault == "limits":
        hub.faults.limit_every = 3
    if fault == "no ranges":
        hub.faults.break_every_bytes, hub.faults.ignore_ranges = 2 * len(WEIGHTS), True
    version.fetch(store)
    assert (store.root / version.path / "model.safetensors").read_bytes() == WEIGHTS
    if fault.startswith("breaks"):
        assert any("Range" in headers for headers in hub.headers)


def test_a_token_goes_to_the_hub_and_to_no_other_address(
    hub: FakeHub, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.token = "hf_secret"
    with pytest.raises(ConfigError, match=r"model\.path: org/name: not here, and the hub .* has no such model; .*HF_TOKEN"):
        look_up(HubName(repository="org/name", is_dataset=False), "model", "model.path: org/name", store)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    look_up(HubName(repository="org/name", is_dataset=False), "model", "model.path: org/name", store).fetch(store)
    assert hub.headers
    assert not any("authorization" in map(str.lower, headers) for headers in hub.headers)
    assert "hf_secret" not in caplog.text
    assert not any(b"hf_secret" in path.read_bytes() for path in store.root.rglob("*") if path.is_file())


def test_what_is_wrong_is_said_with_the_remedy(hub: FakeHub, store: Store) -> None:
    def message(location: str, need: str) -> str:
        with pytest.raises(ConfigError) as caught:
            look_up(location, need, f"key: {location}", store)  # type: ignore[arg-type]
        return str(caught.value)

    assert "no such model; check the name" in message("hf://org/nothing", "model")
    assert "has no revision 'v7'; name a branch" in message("hf://org/name@v7", "model")
    assert "has no config.json" in message("hf://datasets/org/rows", "model")
    assert "holds no data set of tokens (no manifest.json); make one" in message("hf://datasets/org/rows", "tokens")
    assert "no such file; files that can be read: data/train-0.parquet" in message("hf://datasets/org/rows/x", "data")
    assert "must be hf://ORG/NAME" in message("hf://name", "model")


def test_a_repository_of_pickles_is_refused() -> None:
    files = [RemoteFile(name=name, size=1, digest="", read=lambda _: iter(())) for name in ("config.json", "pytorch_model.bin")]
    with pytest.raises(ConfigError, match=r"only pickled weights \(pytorch_model\.bin\).*safetensors/convert"):
        choose(files, "model", "", "model.path: org/old")


def test_of_data_the_training_split_is_fetched_and_for_a_task_one_of_evaluation(hub: FakeHub, store: Store) -> None:
    def fetched(location: str, need: str) -> tuple[set[str], str]:
        version = look_up(location, need, "data", store)  # type: ignore[arg-type]
        version.fetch(store)
        return names_in(store.root / version.folder), version.inner

    assert fetched("hf://datasets/org/rows", "data") == ({"data/train-0.parquet"}, "")
    assert fetched("hf://datasets/org/rows/data", "data") == (set(ROWS), "data")
    assert fetched("hf://datasets/org/rows/data/t*.parquet", "data")[0] == {"data/train-0.parquet", "data/test-0.parquet"}
    assert fetched("hf://datasets/org/rows", "file") == ({"data/validation-0.parquet"}, "data/validation-0.parquet")


def test_a_hub_that_is_silent_is_given_up_after_five_seconds(hub: FakeHub, store: Store) -> None:
    hub.faults.silent = True
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"cannot be reached \(no answer within 5 s.*ropewalk fetch.*HF_ENDPOINT"):
        look_up("hf://org/name", "model", "model.path: hf://org/name", store)
    assert 4 < time.monotonic() - began < 9
    with pytest.raises(ConfigError, match="no answer within 5 s"):
        look_up("hf://org/rows", "data", "data: hf://org/rows", store)
    assert time.monotonic() - began < 9, "the next name waits again"


def test_without_a_hub_the_version_that_is_here_is_used(
    hub: FakeHub, store: Store, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(progress, "notify", notes.append)
    look_up("hf://org/name", "model", "model.path", store).fetch(store)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    again = look_up("hf://org/name", "model", "model.path", store)
    assert again.source.version == COMMIT
    assert store.has(again.folder)
    assert "HF_HUB_OFFLINE is set" in notes[0]
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        look_up("hf://org/name@v1", "model", "model.path", store)
    folder = cache / "models--org--other"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(COMMIT)
    (folder / "blobs").mkdir()
    (folder / f"snapshots/{COMMIT}").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        digest = hashlib.sha256(MODEL[name]).hexdigest()
        (folder / "blobs" / digest).write_bytes(MODEL[name])
        (folder / f"snapshots/{COMMIT}/{name}").symlink_to(f"../../blobs/{digest}")
    cached = look_up("hf://org/other", "model", "model.path", store)
    cached.fetch(store)
    assert (store.root / cached.path / "model.safetensors").read_bytes() == WEIGHTS


def test_contents_that_hf_download_has_fetched_are_not_fetched_again(hub: FakeHub, store: Store, cache: Path) -> None:
    blobs = cache / "models--org--name/blobs"
    blobs.mkdir(parents=True)
    (blobs / hashlib.sha256(WEIGHTS).hexdigest()).write_bytes(WEIGHTS)
    version = look_up("hf://org/name", "model", "model.path", store)
    version.fetch(store)
    assert (store.root / version.path / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.sent_bytes[f"{COMMIT}/model.safetensors"] == 0


def test_a_damaged_rest_is_fetched_anew_and_a_wrong_content_refused(hub: FakeHub, store: Store) -> None:
    version = look_up("hf://org/name", "model", "model.path", store)
    (store.root / "blobs").mkdir(parents=True)
    (store.root / f"blobs/sha256-{hashlib.sha256(WEIGHTS).hexdigest()}.partial").write_bytes(bytes(1 << 20))
    version.fetch(store)
    assert (store.root / version.path / "model.safetensors").read_bytes() == WEIGHTS
    wrong = RemoteFile(name="config.json", size=3, digest=f"sha256-{'0' * 64}", read=lambda at: iter([b"abc"[at:]]))
    with pytest.raises(DataError, match=r"config\.json: its content does not match"):
        store.fetch("models/wrong", Source(label="o/n", name="o/n", version="1", files=(wrong,)), [wrong])
    assert not store.has("models/wrong")


def test_a_name_that_leads_out_of_the_store_is_refused(store: Store) -> None:
    evil = RemoteFile(name="../../evil.json", size=3, digest="etag-1", read=lambda at: iter([b"abc"[at:]]))
    with pytest.raises(DataError, match="leads out of the repository"):
        store.fetch("data/evil", Source(label="o/n", name="o/n", version="1", files=(evil,)), [evil])


def test_two_processes_fetch_a_content_once(hub: FakeHub, store: Store) -> None:
    versions = [look_up("hf://org/name", "model", "model.path", Store(store.root)) for _ in range(3)]
    hub.faults.bytes_per_second = 10e6
    threads = [threading.Thread(target=version.fetch, args=(Store(store.root),)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (store.root / versions[0].path / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.sent_bytes[f"{COMMIT}/model.safetensors"] == len(WEIGHTS)
    assert not list(store.root.rglob("*.partial"))


def test_a_store_is_private_unless_its_mode_shares_it_with_a_group(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def modes(root: Path) -> set[int]:
        look_up("hf://org/name", "model", "model.path", Store(root)).fetch(Store(root))
        return {stat.S_IMODE(path.stat().st_mode) for path in (root, *root.rglob("*"))}

    before = os.umask(0o022)
    try:
        assert modes(tmp_path / "private") == {0o700, 0o600}
        monkeypatch.setenv("ROPEWALK_RUN_MODE", "2770")
        assert modes(tmp_path / "shared") == {0o2770, 0o660}
        monkeypatch.delenv("ROPEWALK_RUN_MODE")
        (tmp_path / "given").mkdir()
        (tmp_path / "given").chmod(0o2775)
        assert modes(tmp_path / "given") == {0o2775, 0o664}
    finally:
        os.umask(before)


def test_a_full_disk_is_foreseen(hub: FakeHub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match=r"3\.0 MiB are to be fetched.*ROPEWALK_STORE"):
        look_up("hf://org/name", "model", "model.path", store).fetch(store)


def test_a_directory_of_another_store_is_fetched_too(store: Store, tmp_path: Path) -> None:
    for name, data in MODEL.items():
        (tmp_path / "bucket" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bucket" / name).write_bytes(data)
    version = look_up(f"file://{tmp_path}/bucket", "model", "model.path", store)
    version.fetch(store)
    assert names_in(store.root / version.path) == {"config.json", "tokenizer.json", "model.safetensors"}
    with pytest.raises(ConfigError, match=r"model\.path: there is no such directory"):
        look_up(f"file://{tmp_path}/nothing", "model", "model.path", store)
