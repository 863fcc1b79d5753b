"""What the manifest says of each input file."""

from collections import Counter
from collections.abc import Sequence

from datapipe.dedup.exact import DROPPED
from datapipe.inputs.ingest import UnitSummary
from datapipe.manifest import InputRecord, hash_of
from datapipe.tokens.shards import Layout


def input_records(layout: Layout, summaries: Sequence[UnitSummary]) -> list[InputRecord]:
    """The record of each input file. The checksum of a file that was read in pieces is over the pieces' checksums."""
    kept: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    checksums: dict[str, list[str]] = {}
    damage: dict[str, str] = {}
    sizes: dict[str, int] = {}
    corpus, decisions = layout.corpus, layout.decisions
    for unit, summary in zip(layout.units, summaries, strict=True):
        first, last = int(corpus.offsets[unit.index]), int(corpus.offsets[unit.index + 1])
        owners, stays = corpus.file[first:last], decisions.fate[first:last] != DROPPED
        for index, file in enumerate(unit.files):
            mine = owners == index
            kept[file.url] += int((mine & stays).sum())
            rejected[file.url] += summary.file_rejected[index] + int((mine & ~stays).sum())
            checksums.setdefault(file.url, []).append(summary.checksums[index])
            sizes[file.url] = file.size
            if str(index) in summary.damage:
                damage[file.url] = summary.damage[str(index)]
    return [
        InputRecord(
            path=url,
            size=sizes[url],
            checksum=f"xxh3:{parts[0]}" if len(parts) == 1 else hash_of(parts).replace("xxh3:", "xxh3-pieces:"),
            documents=kept[url],
            rejected=rejected[url],
            damage=damage.get(url),
        )
        for url, parts in checksums.items()
    ]
