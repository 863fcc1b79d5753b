"""Contamination: items that occur in the training data, with document and shard, and the scores without them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from ropewalk.datapipe.filters.decontamination.index import NgramIndex
from ropewalk.datapipe.loader.shard_texts import TrainingShard, list_shards, text_batches
from ropewalk.datapipe.text.batch import TextBatch
from ropewalk.jobs.evaluation.audit.asking.question import Answer, Judged, Question, Task
from ropewalk.jobs.evaluation.audit.config import ContaminationConfig
from ropewalk.jobs.evaluation.audit.measures.calibration import Choice
from ropewalk.jobs.evaluation.audit.suites.pair import Pair
from ropewalk.jobs.evaluation.audit.training_data.items import Item, read_items
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.results.score import hash_of, mean_score
from ropewalk.jobs.training.loop.token_data import weighted

RATE = "contaminated"
MAX_LOCATIONS = 200


class Contamination:
    """Searches every shard for the items of suites, calibration and other files, by n-grams of words."""

    def __init__(
        self,
        config: ContaminationConfig,
        suites: Mapping[str, Sequence[Pair]],
        choices: Sequence[Choice],
        others: Sequence[Item] = (),
    ) -> None:
        self.config = config
        self.items = [
            Item(
                measure=suite, key=pair.key, texts=(join_context(pair.context, pair.more), join_context(pair.context, pair.less))
            )
            for suite, pairs in suites.items()
            for pair in pairs
        ]
        self.items += [
            Item(measure="calibration", key=f"calibration:{choice.number}", texts=(choice.question, *choice.options))
            for choice in choices
        ]
        self.items += others
        self.items += [item for path in config.against for item in read_items(path)]
        self.shards = list_shards([source.path for source in weighted(config.data)])

    @cached_property
    def index(self) -> NgramIndex:
        """The index of all items; built on the ranks that search."""
        return NgramIndex.build([item.texts for item in self.items], self.config.ngram)

    @property
    def measures(self) -> list[str]:
        """Origins of the items, in order."""
        return list(dict.fromkeys(item.measure for item in self.items))

    def score_names(self) -> list[str]:
        """Return the names of the shares of items found: of all, and by origin."""
        return [RATE, *(f"{name}/{RATE}" for name in self.measures)]

    def questions(self, opened: OpenModel) -> list[Question]:
        """Return a task for each shard."""
        return [
            Task(key=f"contamination:{number}", work=partial(self._search, shard), cost=shard.shard.documents)
            for number, shard in enumerate(self.shards)
        ]

    def _search(self, shard: TrainingShard) -> dict[str, Any]:
        overlaps = []
        for documents in text_batches(shard):
            for overlap in self.index.overlaps(TextBatch.of([document.text for document in documents])):
                document = documents[overlap.text]
                overlaps.append([overlap.item, document.id, document.row, round(overlap.share, 4)])
        return {"found": overlaps, "documents": shard.shard.documents}

    def judge(self, answers: Mapping[str, Answer]) -> Judged:
        """Return the rates, and each location where an item was found."""
        locations: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for number, shard in enumerate(self.shards):
            for item, document, row, share in answers[f"contamination:{number}"]["found"]:
                locations[item].append({"shard": shard.name, "document": document, "row": row, "share": share})
        content_hash = hash_of(
            [item.texts for item in self.items], self.config.ngram, [shard.shard.checksum for shard in self.shards]
        )
        judged = Judged(scores={}, items=[], tables={}, notes=[], plots={})
        for number, item in enumerate(self.items):
            row = {
                "measure": "contamination",
                "key": f"contamination/{item.key}",
                "of": item.key,
                "value": float(number in locations),
            }
            judged.items.append({**row, "from": item.measure, "group": item.key, "places": locations.get(number, [])})
        judged.scores[RATE] = mean_score([item["value"] for item in judged.items], hash=content_hash)
        for name in self.measures:
            values = [item["value"] for item in judged.items if item["from"] == name]
            judged.scores[f"{name}/{RATE}"] = mean_score(values, hash=content_hash)
        rows = [
            {"item": item["of"], **location}
            for item in judged.items
            for location in sorted(item["places"], key=lambda entry: -entry["share"])
        ]
        title = f"Items in the training data ({self.config.ngram} consecutive words, one of which may differ)"
        judged.tables[title] = rows[:MAX_LOCATIONS] or [
            {"item": "none found", "shard": "", "document": "", "row": None, "share": None}
        ]
        if short := self.index.too_short:
            judged.notes.append(f"{short} of {len(self.items)} items have fewer than 8 words and were not searched.")
        return judged


def join_context(context: str, sentence: str) -> str:
    """Return a sentence after its context."""
    return f"{context} {sentence}".strip()


def clean_rows(judged: Judged) -> list[dict[str, Any]]:
    """Return the mean of each measure on items in the training data and on the others."""
    contaminated = {item["of"]: item["value"] for item in judged.items if item["measure"] == "contamination"}
    rows = []
    for measure in dict.fromkeys(item["measure"] for item in judged.items if item["key"] in contaminated):
        items = [item for item in judged.items if item["measure"] == measure and item["key"] in contaminated]
        row: dict[str, Any] = {"measure": measure}
        for name, value in (("clean", 0.0), ("contaminated", 1.0)):
            part = [item for item in items if contaminated[item["key"]] == value]
            score = (
                mean_score([item["value"] for item in part], hash="", groups=[item["group"] for item in part]) if part else None
            )
            row[name] = score.value if score else None
            row[f"{name} standard error"] = score.standard_error if score else None
            row[f"{name} items"] = len(part)
        rows.append(row)
    return rows
