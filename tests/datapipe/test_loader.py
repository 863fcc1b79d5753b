"""Tokens of the k-th sample, over real Arrow files."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ropewalk.cluster.errors import ConfigError, CorruptShardError, DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.loader.block_cache import BlockCache
from ropewalk.datapipe.loader.config import LoaderConfig
from ropewalk.datapipe.loader.loader import Source, TokenLoader
from ropewalk.datapipe.loader.shard_cache import read_shards
from ropewalk.datapipe.manifest import read_manifest
from tests.fakes.token_files import write_dataset
from tests.patience import Patience, until

SIZES = [1001, 640, 1, 330, 2000]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "set", SIZES, [500, 90])


def load(*paths: Path, seq_len: int = 32, seed: int = 7, **options: object) -> TokenLoader:
    return TokenLoader([Source(str(p)) for p in paths], seq_len=seq_len, seed=seed, **options)  # type: ignore[arg-type]


def windows(sizes: list[int], seq_len: int, first: int = 0) -> list[list[int]]:
    """The sequences by the definition: windows of seq_len + 1 within a shard at stride seq_len."""
    results = []
    for size in sizes:
        results += [list(range(first + s, first + s + seq_len + 1)) for s in range(0, size - seq_len, seq_len)]
        first += size
    return results


@pytest.mark.parametrize("seq_len", [1, 7, 32, 500, 1999])
def test_an_epoch_sees_every_window_once(data: Path, seq_len: int) -> None:
    loader = load(data, seq_len=seq_len)
    expected = windows(SIZES, seq_len)
    assert loader.sequences == len(expected)
    read = loader.read(range(loader.sequences))
    assert read.dtype == np.int64
    assert sorted(read.tolist()) == sorted(expected)
    assert loader.in_order(0, loader.sequences).tolist() == expected


def test_epochs_differ_and_are_complete(data: Path) -> None:
    loader = load(data)
    n = loader.sequences
    read, two = loader.read(range(n)), loader.read(range(n, 2 * n))
    assert read.tolist() != two.tolist()
    assert sorted(read.tolist()) == sorted(two.tolist())


def test_a_sample_depends_on_seed_and_position_alone(data: Path) -> None:
    loader = load(data)
    positions = [0, 5, 4095, 4096, 99_999, 10**12]
    together = loader.read(positions)
    for position, row in zip(reversed(positions), reversed(together), strict=True):
        assert load(data).read([position])[0].tolist() == row.tolist()
    assert load(data, seed=8).read(positions).tolist() != together.tolist()


def test_any_world_size_sees_the_same_samples(data: Path) -> None:
    whole = load(data).read(range(48))
    for world_size in (2, 3, 4):
        share = 48 // world_size
        parts = [load(data).read(range(rank * share, (rank + 1) * share)) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_big_vocabularies(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "set", [70_000, 300], dtype=np.uint32)
    loader = load(data, seq_len=64)
    assert sorted(loader.read(range(loader.sequences)).tolist()) == sorted(windows([70_000, 300], 64))


def test_sequences_are_slices_of_the_file(data: Path) -> None:
    loader = load(data)
    loader.read(range(loader.sequences))
    stream = loader.datasets[0].open(0)
    assert not stream.read(0, 5).flags.owndata
    assert not stream.read(0, 5).flags.writeable


def test_validation_in_order(data: Path) -> None:
    loader = load(data, split="validation")
    assert loader.in_order(0, loader.sequences).tolist() == windows([500, 90], 32, first=sum(SIZES))
    assert loader.in_order(3, 5).tolist() == loader.in_order(0, 9)[3:5].tolist()
    assert loader.bytes_per_token == 4.0


def test_mixture_honours_weights_and_each_source_has_its_epochs(tmp_path: Path) -> None:
    small = write_dataset(tmp_path / "small", [330])  # 10 sequences, tokens below 330
    large = write_dataset(tmp_path / "large", [33_000], first=1000)
    loader = TokenLoader([Source(str(small), 3.0), Source(str(large), 1.0)], seq_len=32, seed=1)
    assert loader.sequences == 10 + 1031
    read = loader.read(range(10_000))
    from_small = read[:, 0] < 330
    assert int(from_small.sum()) == 7500
    starts, counts = np.unique(read[from_small, 0], return_counts=True)
    assert len(starts) == 10
    assert set(counts.tolist()) == {750}  # 750 whole epochs of the small one
    assert len(np.unique(read[~from_small, 0])) == 1031
    assert loader.in_order(9, 11)[:, 0].tolist() == [288, 1000]
    assert len(loader.manifests) == 2


def test_of_several_sources_the_beginning_of_each_is_read_in_order(tmp_path: Path) -> None:
    """The first sequences of all of them are those of the first source, which may be another kind of text."""
    sets = [
        write_dataset(tmp_path / str(n), [size], first=first, bytes_a_token=each)
        for n, (size, first, each) in enumerate([(970, 0, 4), (330, 2000, 4), (100, 4000, 10)])
    ]
    sources = [Source(str(path)) for path in sets]
    loader = TokenLoader(sources, seq_len=32, seed=1, most=10)
    assert loader.sequences == 10
    assert loader.in_order(0, 10)[:, 0].tolist() == [*range(0, 7 * 32, 32), 2000, 2032, 4000]
    assert loader.in_order(6, 9).tolist() == loader.in_order(0, 10)[6:9].tolist()
    everything = TokenLoader(sources, seq_len=32, seed=1)
    assert TokenLoader(sources, seq_len=32, seed=1, most=everything.sequences).sequences == everything.sequences == 30 + 10 + 3
    assert loader.bytes_per_token == pytest.approx(0.9 * 4.0 + 0.1 * 10.0), "of what is read"


def test_nothing_to_read(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"seq_len=5000 fits into 3972 tokens"):
        load(data, seq_len=5000)
    with pytest.raises(DataError, match="no validation split"):
        load(write_dataset(tmp_path / "set", [100]), split="validation")
    with pytest.raises(DataError, match="not complete"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="seq_len"):
        load(data, seq_len=0)
    with pytest.raises(ConfigError, match="on_corrupt"):
        load(data, on_corrupt="ignore")


@pytest.mark.parametrize("version", [1, 3])
def test_a_data_set_of_another_version(tmp_path: Path, version: int) -> None:
    data = write_dataset(tmp_path / "set", [100])
    manifest = data / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 2', f'"schema_version": {version}'))
    with pytest.raises(DataError, match=rf"schema version {version}, but this program reads version 2; make the data set again"):
        load(data)


# --- the order in runs


@pytest.mark.parametrize("run", [1, 3, 8, 1000])
def test_an_epoch_in_runs_sees_every_window_once_and_any_position_alone(data: Path, run: int) -> None:
    loader = load(data, options=LoaderConfig(block_samples=run))
    n = loader.sequences
    epochs = [loader.read(range(epoch * n, (epoch + 1) * n)).tolist() for epoch in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(windows(SIZES, 32))
    assert epochs[0] != load(data).read(range(n)).tolist()
    for position in (0, n - 1, n + 5):
        alone = load(data, options=LoaderConfig(block_samples=run)).read([position])
        assert alone[0].tolist() == epochs[position // n][position % n]


def test_runs_touch_few_blocks_at_first(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "set", [2_000_000] * 16)  # 4 blocks each
    scattered, in_runs = load(data, seq_len=16), load(data, seq_len=16, options=LoaderConfig(block_samples=100))
    for loader in (scattered, in_runs):
        loader.read(range(2000))
    assert scattered.bytes_read == 64 << 20
    assert in_runs.bytes_read < 50 << 20


# --- damage


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"), [(flip, "block 0 (bytes 0 to"), (cut, "bytes, found"), (Path.unlink, "found no file")]
)
def test_a_damaged_shard_is_named(tmp_path: Path, damage: object, message: str) -> None:
    data = write_dataset(tmp_path / "set", SIZES)
    damage(data / "shards/part-00003.arrow")  # type: ignore[operator]
    with pytest.raises(CorruptShardError) as caught:
        load(data).read(range(200))
    for word in (message, "part-00003.arrow", "on_corrupt=quarantine"):
        assert word in str(caught.value)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_quarantine_replaces_what_is_lost_and_moves_nothing_else(tmp_path: Path, damage: object) -> None:
    data = write_dataset(tmp_path / "set", SIZES)
    whole = load(data).read(range(300))
    damage(data / "shards/part-00000.arrow")  # type: ignore[operator]
    loader = load(data, on_corrupt="quarantine")
    read = loader.read(range(300))
    lost = whole[:, 0] < SIZES[0]
    assert lost.any()
    assert np.array_equal(read[~lost], whole[~lost])
    assert read[lost].min() >= SIZES[0]
    assert np.array_equal(load(data, on_corrupt="quarantine").read(range(300)), read)
    assert len(loader.quarantined) == 1
    assert "part-00000.arrow" in loader.quarantined[0]
    everything = loader.in_order(0, loader.sequences).tolist()
    assert all(row in windows(SIZES, 32) for row in everything)


def test_quarantine_of_everything_is_an_error(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "set", [500, 600])
    flip(data / "shards/part-00000.arrow")
    flip(data / "shards/part-00001.arrow")
    with pytest.raises(CorruptShardError, match="all shards are corrupt"):
        load(data, on_corrupt="quarantine")


def test_only_blocks_that_are_read_are_verified(tmp_path: Path) -> None:
    """No shard is hashed whole before its first token, and a damaged block is named when it is read."""
    data = write_dataset(tmp_path / "set", [3_000_000])
    path = data / "shards/part-00000.arrow"
    raw = bytearray(path.read_bytes())
    raw[-200_000] ^= 1  # a token of block 5
    path.write_bytes(raw)
    loader = load(data, seq_len=1000)
    assert loader.in_order(0, 1)[0, :2].tolist() == [0, 1]
    assert loader.bytes_read == 1 << 20
    with pytest.raises(CorruptShardError, match=r"part-00000.arrow: block 5 \(bytes 5242880 to .*expected checksum xxh3:"):
        loader.in_order(loader.sequences - 100, loader.sequences)
    load(data, seq_len=1_200_000).in_order(0, 1)  # a sequence over several blocks
    with pytest.raises(CorruptShardError, match="block 5"):
        load(data, seq_len=2_950_000).in_order(0, 1)


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "set", [500, 600])
    flip(data / "blocks.xxh3")
    with pytest.raises(CorruptShardError, match=r"blocks.xxh3: damaged where it describes shards/part-0000"):
        load(data).read(range(20))
    flip(data / "shards.ipc")
    with pytest.raises(DataError, match=r"shards.ipc: expected checksum"):
        load(data)
    (data / "shards.ipc").unlink()
    with pytest.raises(DataError, match=r"shards.ipc: no such file"):
        load(data)


def test_sizes_are_checked_when_asked(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "set", SIZES)
    load(data).check_sizes()
    cut(data / "shards/part-00003.arrow")
    loader = load(data)
    with pytest.raises(CorruptShardError, match=r"part-00003.arrow: expected \d+ bytes, found"):
        loader.check_sizes()


def test_few_shards_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ropewalk.datapipe.loader.loader.MOST_OPEN", 3)
    data = write_dataset(tmp_path / "set", [100] * 12)
    loader = load(data)
    assert sorted(loader.read(range(36)).tolist()) == sorted(windows([100] * 12, 32))
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if f"{data}/shards/" in line}
    assert len(mapped) == 3


def test_a_manifest_lists_few_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = read_manifest(StoragePath(write_dataset(tmp_path / "few", [500, 600], [40])))
    assert [(shard.path, shard.tokens) for shard in few.shards][1] == ("shards/part-00001.arrow", 600)
    monkeypatch.setattr("ropewalk.datapipe.shard_table.LISTED", 2)
    data = write_dataset(tmp_path / "many", [500, 600], [40])
    many = read_manifest(StoragePath(data))
    assert many.shards == ()
    assert many.table == few.table
    assert tuple(read_shards(StoragePath(data), many)) == few.shards
    assert np.array_equal(load(data).read(range(30)), load(tmp_path / "few").read(range(30)))


# --- data far away


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROPEWALK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def remote(data: Path) -> str:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.put(f"{data}/", "/far/set/", recursive=True)
    return "memory://far/set"


def pieces(cache: Path) -> list[Path]:
    return [path for path in (cache / "blocks").iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize("run", [None, 4, 1000])
def test_pieces_of_a_remote_shard_are_fetched_once(data: Path, remote: str, cache: Path, run: int | None) -> None:
    import fsspec

    options = LoaderConfig(block_samples=run)
    loader = TokenLoader([Source(remote)], seq_len=32, seed=7, options=options)
    assert np.array_equal(loader.read(range(200)), load(data, options=options).read(range(200)))
    assert len({path.name.split("-")[0] for path in pieces(cache)}) == 4  # the shard of one token is never needed
    fetched = loader.bytes_read
    fsspec.filesystem("memory").rm("/far/set/shards", recursive=True)
    again = TokenLoader([Source(remote)], seq_len=32, seed=7, options=options)
    assert np.array_equal(again.read(range(200)), loader.read(range(200)))
    assert (loader.bytes_read, again.bytes_read) == (fetched, 0)


def test_samples_are_fetched_ahead(data: Path, remote: str, cache: Path) -> None:
    loader = TokenLoader([Source(remote)], seq_len=32, seed=7, options=LoaderConfig(block_samples=4))
    loader.expect(range(8))
    until(lambda: loader.bytes_read > 0, Patience.SIGNAL)
    loader.expect(range(8, 200))
    until(lambda: len({path.name.split("-")[0] for path in pieces(cache)}) == 4, Patience.SIGNAL)
    assert np.array_equal(loader.read(range(200)), load(data, options=LoaderConfig(block_samples=4)).read(range(200)))
    load(data).expect(range(8))  # nothing to do for local files


def test_a_damaged_piece_of_the_cache_is_fetched_again(data: Path, remote: str, cache: Path) -> None:
    first = TokenLoader([Source(remote)], seq_len=32, seed=7).read(range(200))
    for piece in pieces(cache):
        flip(piece)
    assert np.array_equal(TokenLoader([Source(remote)], seq_len=32, seed=7).read(range(200)), first)


@pytest.mark.parametrize(("content", "problem"), [(b"not what it was", "found 15"), (None, "found no file")])
def test_a_damaged_remote_shard_is_named(data: Path, remote: str, cache: Path, content: bytes | None, problem: str) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    if content is None:
        fs.rm("/far/set/shards/part-00004.arrow")
    else:
        fs.pipe_file("/far/set/shards/part-00004.arrow", content)
    with pytest.raises(CorruptShardError, match=rf"part-00004.arrow: expected \d+ bytes, {problem}"):
        TokenLoader([Source(remote)], seq_len=32, seed=7).read(range(200))
    loader = TokenLoader([Source(remote)], seq_len=32, seed=7, on_corrupt="quarantine")
    loader.read(range(200))
    assert len(loader.quarantined) == 1


def test_a_flipped_bit_of_a_remote_shard_is_named(data: Path, remote: str, cache: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    raw = bytearray(fs.cat_file("/far/set/shards/part-00004.arrow"))
    raw[len(raw) // 2] ^= 1
    fs.pipe_file("/far/set/shards/part-00004.arrow", bytes(raw))
    with pytest.raises(CorruptShardError, match=r"part-00004.arrow: block 0 .*expected checksum xxh3:"):
        TokenLoader([Source(remote)], seq_len=32, seed=7).read(range(200))
    assert len(TokenLoader([Source(remote)], seq_len=32, seed=7, on_corrupt="quarantine").quarantined) == 1


def test_the_cache_stays_within_its_size_and_serves_what_is_used(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "blocks", 100_000)
    fetched: list[int] = []

    def content(number: int) -> bytes:
        fetched.append(number)
        return bytes([number % 251]) * 10_000

    for number in range(200):
        view = cache.map(f"piece-{number}", partial(content, number))
        assert bytes(view[:1]) == bytes([number % 251])
        assert bytes(cache.map("piece-0", partial(content, 0))[:1]) == b"\0"
        assert sum(path.stat().st_size for path in pieces(tmp_path)) <= 100_000
    assert fetched == list(range(200)), "the piece in use was never removed"
    assert cache.bytes_fetched == 2_000_000


def test_a_cache_too_small_for_the_order_is_refused(remote: str, cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"loader.cache_gib: 0.1 cannot hold 128 runs of 100000 sequences; set at least"):
        TokenLoader([Source(remote)], seq_len=32, seed=7, options=LoaderConfig(block_samples=100_000, cache_gib=0.1))
