"""Tokens of the k-th sample, over real Arrow files."""

from pathlib import Path

import numpy as np
import pytest

from ropewalk.cluster.errors import ConfigError, CorruptShardError, DataError
from ropewalk.datapipe.loader.loader import Source, TokenLoader
from tests.fakes.token_files import write_dataset

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
    positions = [0, 5, 1023, 1024, 99_999, 10**12]
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


def test_big_vocabularies_and_several_batches_a_shard(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "set", [70_000, 300], dtype=np.uint32, batches=3)
    loader = load(data, seq_len=64)
    assert sorted(loader.read(range(loader.sequences)).tolist()) == sorted(windows([70_000, 300], 64))


def test_sequences_are_slices_of_the_file(data: Path) -> None:
    loader = load(data)
    loader.read(range(loader.sequences))
    stream = loader.datasets[0].open(0)
    assert isinstance(stream[0:5], np.ndarray)
    assert not stream[0:5].flags.owndata
    assert not stream[0:5].flags.writeable


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
        write_dataset(tmp_path / str(n), [size], first=first)
        for n, (size, first) in enumerate([(970, 0), (330, 2000), (100, 4000)])
    ]
    sources = [Source(str(path)) for path in sets]
    loader = TokenLoader(sources, seq_len=32, seed=1, most=10)
    assert loader.sequences == 10
    assert loader.in_order(0, 10)[:, 0].tolist() == [*range(0, 7 * 32, 32), 2000, 2032, 4000]
    assert loader.in_order(6, 9).tolist() == loader.in_order(0, 10)[6:9].tolist()
    everything = TokenLoader(sources, seq_len=32, seed=1)
    assert TokenLoader(sources, seq_len=32, seed=1, most=everything.sequences).sequences == everything.sequences == 30 + 10 + 3
    last = loader.datasets[2]
    last.shards = tuple(shard.model_copy(update={"bytes": 10 * shard.tokens}) for shard in last.shards)
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


def test_a_data_set_of_the_future(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "set", [100])
    manifest = data / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(DataError, match=r"schema version 2, but this program reads version 1"):
        load(data)


# --- damage


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"), [(flip, "expected checksum xxh3:"), (cut, "bytes, found"), (Path.unlink, "found no file")]
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


def test_a_remote_shard_is_copied_once(data: Path, remote: str, cache: Path) -> None:
    import fsspec

    loader = TokenLoader([Source(remote)], seq_len=32, seed=7)
    assert np.array_equal(loader.read(range(200)), load(data).read(range(200)))
    assert len(list(cache.glob("shards/xxh3-*.arrow"))) == 4  # the shard of one token is never needed
    fsspec.filesystem("memory").rm("/far/set/shards", recursive=True)
    assert np.array_equal(TokenLoader([Source(remote)], seq_len=32, seed=7).read(range(9)), load(data).read(range(9)))


def test_a_damaged_copy_is_fetched_again(data: Path, remote: str, cache: Path) -> None:
    first = TokenLoader([Source(remote)], seq_len=32, seed=7).read(range(200))
    for copy in cache.glob("shards/xxh3-*.arrow"):
        flip(copy)
    assert np.array_equal(TokenLoader([Source(remote)], seq_len=32, seed=7).read(range(200)), first)


def test_a_damaged_remote_shard_is_named(data: Path, remote: str, cache: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe_file("/far/set/shards/part-00004.arrow", b"not what it was")
    with pytest.raises(CorruptShardError, match=r"part-00004.arrow: expected \d+ bytes .* found 15 bytes"):
        TokenLoader([Source(remote)], seq_len=32, seed=7).read(range(200))
    loader = TokenLoader([Source(remote)], seq_len=32, seed=7, on_corrupt="quarantine")
    loader.read(range(200))
    assert len(loader.quarantined) == 1
