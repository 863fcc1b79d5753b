"""Copies of each training document, so that sources or languages have the configured shares."""

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
    """Return the names of a unit's sources, and the index of each document's source."""
    with open_file(work, texts_name(unit.index)) as stream:
        reader = pa.ipc.open_file(stream, options=pa.ipc.IpcReadOptions(included_fields=[1], use_threads=False))
        columns = [reader.get_batch(k).column(0) for k in range(reader.num_record_batches)]
    sources = pa.chunked_array(columns, pa.string()).combine_chunks().dictionary_encode()
    return sources.dictionary.to_pylist(), sources.indices.to_numpy().astype(np.int64)


def read_languages(unit: Unit, work: StoragePath) -> tuple[list[str], NDArray[np.int64]]:
    """Return the codes of a unit's languages, and the index of each document's language."""
    codes = np.array(orjson.loads(work.read(languages_name(unit.index))), dtype="U8")
    names, owner = np.unique(codes, return_inverse=True)
    return names.tolist(), owner.astype(np.int64)


def epochs_of(options: Balance, names: Sequence[str], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the epochs of each source by its size. Raises DataError for an unknown source, or if no text is left to train on."""
    unknown = sorted(set(options.weights) - set(names))
    if unknown:
        raise DataError(f"balance.weights: no document has {options.by} {unknown[0]!r}; use one of {', '.join(names[:20])}")
    total = sizes.sum()
    shares = sizes.astype(np.float64) ** options.temperature
    has_weight = np.array([name in options.weights for name in names])
    if has_weight.any():
        weights = np.array([options.weights.get(name, 0.0) for name in names])
        rest = max(1 - weights.sum(), 0.0)
        others = np.where(has_weight, 0, sizes)
        shares = weights + (rest * others / others.sum() if others.sum() else 0)
    if not shares.sum() or not total:
        raise DataError("balance: no text is left to train on; give a source with text a weight, or lower validation_fraction")
    shares = shares / shares.sum()
    return np.asarray(np.minimum(shares * total / np.maximum(sizes, 1), options.max_epochs))


def balance(
    options: Balance, units: Sequence[Unit], corpus: Corpus, work: StoragePath
) -> tuple[Corpus, dict[str, dict[str, float]]]:
    """Set the number of copies of each training document; also return epochs and share of each source.

    For a source with 2.3 epochs, every document is taken twice, and those with a hash below 0.3 once more. The validation
    split is not changed.
    """
    read = read_languages if options.by == "language" else read_sources
    bytes_of: Counter[str] = Counter()
    for unit in units:
        sources, owner = read(unit, work)
        train = corpus.fate[corpus.rows_of(unit.index)] == TRAIN
        weights = corpus.size[corpus.rows_of(unit.index)][train]
        sizes_here = np.bincount(owner[train], weights, len(sources)).astype(np.int64)
        bytes_of.update(dict(zip(sources, sizes_here.tolist(), strict=True)))
    names = sorted(bytes_of)
    sizes = np.array([bytes_of[name] for name in names], np.int64)
    epochs, index_of = epochs_of(options, names, sizes), {name: index for index, name in enumerate(names)}
    most = int(np.ceil(epochs.max(initial=1)))
    copies, taken = np.ones(len(corpus.size), np.min_scalar_type(most)), np.zeros(len(names))
    for unit, hashes in id_hashes(units, corpus, work):
        sources, owner = read(unit, work)
        owner = np.array([index_of[name] for name in sources], np.int64)[owner]
        fate, size = corpus.fate[corpus.rows_of(unit.index)], corpus.size[corpus.rows_of(unit.index)].astype(np.int64)
        train, epochs_here = fate == TRAIN, epochs[owner]
        draw = hashes[:, 1] / 2.0**64  # the other half of the hash chooses the split
        times = np.where(train, np.floor(epochs_here) + (draw < epochs_here % 1), 1).astype(np.int64)
        copies[corpus.rows_of(unit.index)] = times
        taken += np.bincount(owner[train], (size * times)[train], len(names))
        fate[times == 0] = LEFT_OUT
    whole = max(taken.sum(), 1)
    mixture = {
        name: {"epochs": round(float(taken[at] / max(sizes[at], 1)), 6), "share": round(float(taken[at] / whole), 6)}
        for at, name in enumerate(names)
    }
    return replace(corpus, copies=copies), mixture
