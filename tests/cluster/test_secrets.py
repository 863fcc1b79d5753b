"""Secrets: their store, their mask, and logs in which they are masked whatever arrives when."""

import json
import os
import random
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process import child_output as outputs
from ropewalk.cluster.process.child_output import child_output, finish_outputs
from ropewalk.cluster.secrets.masking import Mask, MaskedStream
from ropewalk.cluster.secrets.store import FileStore, check_name, check_value, read_value
from ropewalk.cluster.secrets.variables import FOLDER_VARIABLE, NAMES_VARIABLE, RunSecrets, without_secrets
from tests.patience import HANG_SECONDS

TOKEN, LONGER = "hf_'Ab\\c/ü?1234", "hf_'Ab\\c/ü?1234-and-more"
KEY = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQEF\nab==\n-----END KEY-----"
SECRETS = {"TOKEN": TOKEN, "LONGER": LONGER, "KEY": KEY}


def test_the_store_is_private_and_lists_names_only(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "secrets/big")
    assert store.names() == []
    before = os.umask(0)
    try:
        store.set("HF_TOKEN", f"{TOKEN}\n")
        store.set("SSH_KEY", KEY)
        store.set("HF_TOKEN", LONGER)
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"secrets": 0o700, "secrets/big": 0o700, "secrets/big/HF_TOKEN": 0o600, "secrets/big/SSH_KEY": 0o600}
    assert store.names() == ["HF_TOKEN", "SSH_KEY"]
    assert store.read(["HF_TOKEN", "SSH_KEY", "OTHER"]) == {"HF_TOKEN": LONGER, "SSH_KEY": KEY}
    assert store.remove("SSH_KEY")
    assert not store.remove("SSH_KEY")
    with pytest.raises(ConfigError, match="rename it"):
        FileStore.of_cluster("../local")


def test_values_that_cannot_be_masked_or_held_are_refused() -> None:
    assert read_value(BytesIO(f"{KEY}\r\n".encode())) == KEY
    for value in ("", "short", "seven!!\n\n", "a\0bcdefgh", "x" * (1 << 17)):
        with pytest.raises(ConfigError) as refused:
            check_value(value)
        assert value[:3] not in str(refused.value) or not value
    with pytest.raises(ConfigError, match="base64"):
        read_value(BytesIO(b"\xff" * 20))
    for name in ("1A", "A=hunter2hunter2", "hunter2 hunter2", "ROPEWALK_RUNS", ""):
        with pytest.raises(ValueError, match=r"names? of") as mistaken:
            check_name(name)
        assert "hunter2" not in str(mistaken.value)


@pytest.mark.parametrize("write", [str, repr, json.dumps])
def test_a_value_is_masked_however_it_is_written(write: object) -> None:
    assert callable(write)
    mask = Mask(SECRETS)
    for name, value in SECRETS.items():
        masked = mask.text(f"<{write(value)}>")
        assert f"***{name}***" in masked
        assert not [line for line in value.splitlines() if len(line) >= 8 and line in masked]
    assert mask.text("https://x:hf_%27Ab%5Cc%2F%C3%BC%3F1234@host") == "https://x:***TOKEN***@host"
    assert mask.text("hf_ alone, and -----BEGIN") == "hf_ alone, and -----BEGIN"
    assert not Mask({})
    assert Mask({}).text(TOKEN) == TOKEN


def test_a_value_is_masked_wherever_the_stream_is_cut() -> None:
    text = f"a{TOKEN}b {LONGER}{TOKEN}\n{KEY}\nhf_'Ab -----BEGIN KEY---- {TOKEN[:-1]}\n{KEY[:30]}".encode()
    mask = Mask(SECRETS)
    whole = mask.whole(text)
    assert whole.startswith(b"a***TOKEN***b ***LONGER******TOKEN***\n***KEY***\nhf_'Ab")
    dice = random.Random(1)
    cuts = [[cut] for cut in range(1, len(text))] + [list(range(1, len(text)))]
    cuts += [sorted(dice.sample(range(1, len(text)), 6)) for _ in range(500)]
    for places in cuts:
        stream = MaskedStream(mask)
        parts = [stream.feed(text[start:end]) for start, end in zip([0, *places], [*places, len(text)], strict=True)]
        assert b"".join([*parts, stream.end()]) == whole, places
    assert MaskedStream(mask).feed(b"a line\n") == b"a line\n", "nothing waits without reason"


def test_logs_of_children_are_masked_and_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "MOST_BYTES", 20_000)
    monkeypatch.setattr("ropewalk.cluster.process.log_rotation.MOST_BYTES", 20_000)
    program = "import os, sys, time\nv = os.environ['TOKEN']\nfor n in range(3000): print(n, v)\n"
    program += "sys.stdout.write(v[:5]); sys.stdout.flush(); time.sleep(0.05); os.write(1, v[5:].encode()); raise ValueError(v)"
    secrets, log = RunSecrets(SECRETS), tmp_path / "rank-0.log"
    with child_output(log, secrets) as output:
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdout=output, stderr=output, env={**os.environ, **secrets.environment}
        )
    assert child.wait(HANG_SECONDS) == 1
    finish_outputs(HANG_SECONDS)
    text = (tmp_path / "rank-0.log.1").read_text() + log.read_text()
    assert text.splitlines()[-1] == "ValueError: ***TOKEN***"
    assert "2999 ***TOKEN***\n***TOKEN***Traceback" in text
    assert TOKEN[3:] not in text
    assert log.stat().st_size < 40_000
    with child_output(log, RunSecrets()) as output:
        assert os.readlink(f"/proc/self/fd/{output}") == str(log), "without secrets children write their log themselves"


def test_ranks_that_share_a_log_write_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "ranks-1.log"
    with child_output(log, RunSecrets(SECRETS), whole_lines=True) as first:
        os.write(first, b"rank 1 | one, ")
        with child_output(log, RunSecrets(SECRETS), whole_lines=True) as second:
            os.write(second, b"rank 2 | two\n")
        finish_outputs(0.3)
        os.write(first, f"{TOKEN}\nrank 1 | end".encode())
    finish_outputs(HANG_SECONDS)
    assert log.read_text() == "rank 2 | two\nrank 1 | one, ***TOKEN***\nrank 1 | end"


def test_an_agent_reads_the_secrets_of_its_run_and_its_children_inherit_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    FileStore.of_cluster("big").set("TOKEN", TOKEN)
    record = {"cluster": "big", "secrets": ["TOKEN"]}
    secrets = RunSecrets.read(record)
    assert TOKEN not in repr(secrets)
    assert secrets.environment == {"TOKEN": TOKEN, NAMES_VARIABLE: "TOKEN"}
    assert RunSecrets.read({}).environment == {}
    with pytest.raises(ConfigError, match=r"OTHER is not set on cluster 'big'.*`ropewalk secret set OTHER --on big`"):
        RunSecrets.read({"cluster": "big", "secrets": ["OTHER"]})
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "mount"))
    with pytest.raises(ConfigError, match="TOKEN is not set"):
        RunSecrets.read(record)
    for name, value in secrets.environment.items():
        monkeypatch.setenv(name, value)
    assert RunSecrets.inherited().masked({"text": f"a {TOKEN}", "n": 1}) == {"text": "a ***TOKEN***", "n": 1}
    assert without_secrets({**secrets.environment, "PATH": "/bin"}) == {"PATH": "/bin"}
