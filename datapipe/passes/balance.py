"""How often each training document is taken, so that sources or languages have the shares that were asked for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from ropewalk.cluster.errors import DataError
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.exact import LEFT_OUT, TRAIN, Corpus, id_hashes
from ropewalk.datapipe.inputs.files import Unit
from ropewalk.datapipe.inputs.streams import open_file
from ropewalk.datapipe.inputs.unit_files import languages_name, texts_name
from ropewalk.datapipe.passes.config import Balance


def read_sources(unit: Unit, work: StoragePath) -> tuple[list[str], NDArray[np.int64]]:
    """The names of a unit's sources, and of each document the number of its source."""
    with open_file(work, texts_name(unit.index)) as stream:
        reader = pa.ipc.open_file(stream, options=pa.ipc.IpcReadOptions(included_fields=[1], use_threads=False))
        columns = [reader.get_batch(k).column(0) for k in range(reader.num_record_batches)]
    one = pa.chunked_array(columns, pa.string()).combine_chunks().dictionary_encode()
    return one.dictionary.to_pylist(), one.indices.to_numpy().astype(np.int64)


def read_languages(unit: Unit, work: StoragePath) -> tuple[list[str], NDArray[np.int64]]:
    """The codes of the languages that occur in a unit, and of each document the number of its one."""
    codes = np.array(orjson.loads(work.read(languages_name(unit.index))), dtype="U8")
    names, owner = np.unique(codes, return_inverse=True)
    return names.tolist(), owner.astype(np.int64)


def epochs_of(options: Balance, names: Sequence[str], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """How often each source is taken, by the bytes of its training text. Raises DataError for a weight of no source, or none."""
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
    if not shares.sum() or not total:
        raise DataError("balance: no text is left to train on; give a source of some a weight, or lower validation_fraction")
    shares = shares / shares.sum()
    return np.asarray(np.minimum(shares * total / np.maximum(sizes, 1), options.max_epochs))


def balance(
    options: Balance, units: Sequence[Unit], corpus: Corpus, work: StoragePath
) -> tuple[Corpus, dict[str, dict[str, float]]]:
    """Say how often each document is taken, and of each source its epochs and its share. Validation stays as it is.

    Of a source that is taken 2.3 times every document is taken twice, and those with a hash below 0.3 once more.
    """
    read = read_languages if options.by == "language" else read_sources
    found: Counter[str] = Counter()
    for unit in units:
        own, owner = read(unit, work)
        train = corpus.fate[corpus.rows_of(unit.index)] == TRAIN
        weights = corpus.size[corpus.rows_of(unit.index)][train]
        found.update(dict(zip(own, np.bincount(owner[train], weights, len(own)).astype(np.int64).tolist(), strict=True)))
    names = sorted(found)
    sizes = np.array([found[name] for name in names], np.int64)
    epochs, places = epochs_of(options, names, sizes), {name: place for place, name in enumerate(names)}
    most = int(np.ceil(epochs.max(initial=1)))
    copies, taken = np.ones(len(corpus.size), np.min_scalar_type(most)), np.zeros(len(names))
    for unit, hashes in id_hashes(units, corpus, work):
        own, owner = read(unit, work)
        owner = np.array([places[name] for name in own], np.int64)[owner]
        fate, size = corpus.fate[corpus.rows_of(unit.index)], corpus.size[corpus.rows_of(unit.index)].astype(np.int64)
        train, wanted = fate == TRAIN, epochs[owner]
        draw = hashes[:, 1] / 2.0**64  # the split is chosen by the other half of the hash
        times = np.where(train, np.floor(wanted) + (draw < wanted % 1), 1).astype(np.int64)
        copies[corpus.rows_of(unit.index)] = times
        taken += np.bincount(owner[train], (size * times)[train], len(names))
        fate[times == 0] = LEFT_OUT
    whole = max(taken.sum(), 1)
    mixture = {
        name: {"epochs": round(float(taken[at] / max(sizes[at], 1)), 6), "share": round(float(taken[at] / whole), 6)}
        for at, name in enumerate(names)
    }
    return replace(corpus, copies=copies), mixture
