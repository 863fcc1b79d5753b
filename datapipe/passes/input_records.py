"""Records of the input files for the manifest."""

from collections import Counter
from collections.abc import Sequence

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.exact import TRAIN, files_of_documents
from ropewalk.datapipe.inputs.unit_files import UnitSummary
from ropewalk.datapipe.manifest import InputRecord, hash_of
from ropewalk.datapipe.tokens.shards import Layout


def input_records(layout: Layout, summaries: Sequence[UnitSummary], work: StoragePath) -> list[InputRecord]:
    """Build the record of each input file. The checksum of a file that was read in pieces is over the pieces' checksums."""
    documents: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    checksums: dict[str, list[str]] = {}
    damage: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for unit, summary in zip(layout.units, summaries, strict=True):
        owners = files_of_documents(work, unit)
        is_kept = layout.corpus.fate[layout.corpus.rows_of(unit.index)] >= TRAIN
        for index, file in enumerate(unit.files):
            mine = owners == index
            documents[file.url] += int((mine & is_kept).sum())
            rejected[file.url] += summary.file_rejected[index] + int((mine & ~is_kept).sum())
            checksums.setdefault(file.url, []).append(summary.checksums[index])
            sizes[file.url] = file.size
            if str(index) in summary.damage:
                damage[file.url] = summary.damage[str(index)]
    return [
        InputRecord(
            path=url,
            size=sizes[url],
            checksum=f"xxh3:{parts[0]}" if len(parts) == 1 else hash_of(parts).replace("xxh3:", "xxh3-pieces:"),
            documents=documents[url],
            rejected=rejected[url],
            damage=damage.get(url),
        )
        for url, parts in checksums.items()
    ]
