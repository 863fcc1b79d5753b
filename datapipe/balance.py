"""How often each training document is taken, so that sources or languages have the shares that were asked for."""

from collections.abc import Sequence

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from cluster.errors import DataError
from cluster.storage import StoragePath
from datapipe.dedup.exact import TRAIN, Corpus, Decisions
from datapipe.filters.balance import Balance
from datapipe.inputs.files import Unit
from datapipe.inputs.ingest import languages_name, texts_name
from datapipe.inputs.streams import open_file


def read_sources(units: Sequence[Unit], work: StoragePath) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """The names of all sources, sorted, and of each document the number of its source."""
    columns: list[pa.Array] = []
    for unit in units:
        with open_file(work, texts_name(unit.index)) as stream:
            reader = pa.ipc.open_file(stream, options=pa.ipc.IpcReadOptions(included_fields=[1], use_threads=False))
            columns += [reader.get_batch(k).column(0).dictionary_encode() for k in range(reader.num_record_batches)]
    if not columns:
        return (), np.zeros(0, np.int32)
    one = pa.chunked_array(columns).unify_dictionaries().combine_chunks()
    names = one.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), np.int32)
    rank[order] = np.arange(len(names), dtype=np.int32)
    return tuple(names[at] for at in order), rank[one.indices.to_numpy()]


def read_languages(units: Sequence[Unit], work: StoragePath) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """The codes of all languages that occur, sorted, and of each document the number of its one."""
    found = [np.array(orjson.loads(work.read(languages_name(unit.index))), dtype="U8") for unit in units]
    names, owner = np.unique(np.concatenate([np.zeros(0, "U8"), *found]), return_inverse=True)
    return tuple(names.tolist()), owner.astype(np.int32)


def epochs_of(options: Balance, names: Sequence[str], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """How often each source is taken, by the bytes of its training text. Raises DataError for a weight of no source."""
    unknown = sorted(set(options.weights) - set(names))
    if unknown:
        what = f"no document is of {options.by} {unknown[0]!r}"
        raise DataError(f"balance.weights: {what}; there are {', '.join(names[:20])}")
    total = sizes.sum()
    shares = sizes.astype(np.float64) ** options.temperature
    named = np.array([name in options.weights for name in names])
    if named.any():
        given = np.array([options.weights.get(name, 0.0) for name in names])
        rest = max(1 - given.sum(), 0.0)
        others = np.where(named, 0, sizes)
        shares = given + (rest * others / others.sum() if others.sum() else 0)
    shares = shares / shares.sum()
    return np.asarray(np.minimum(shares * total / np.maximum(sizes, 1), options.max_epochs))


def balance(
    options: Balance, sources: tuple[tuple[str, ...], NDArray[np.int32]], corpus: Corpus, decisions: Decisions
) -> tuple[NDArray[np.int64], dict[str, dict[str, float]]]:
    """How often each document is taken, and of each source its epochs and its share. Validation stays as it is.

    Of a source that is taken 2.3 times every document is taken twice, and those with a hash below 0.3 once more.
    """
    names, owner = sources
    train = decisions.fate == TRAIN
    sizes = np.bincount(owner[train], weights=corpus.size[train], minlength=len(names)).astype(np.int64)
    epochs = epochs_of(options, names, sizes)
    wanted = epochs[owner]
    draw = corpus.id_hash[:, 1] / 2.0**64  # the split is chosen by the other half of the hash
    copies = np.where(train, np.floor(wanted) + (draw < wanted % 1), 1).astype(np.int64)
    taken = np.bincount(owner[train], weights=(corpus.size * copies)[train], minlength=len(names))
    whole = max(taken.sum(), 1)
    mixture = {
        name: {"epochs": round(float(taken[at] / max(sizes[at], 1)), 6), "share": round(float(taken[at] / whole), 6)}
        for at, name in enumerate(names)
    }
    return copies, mixture
