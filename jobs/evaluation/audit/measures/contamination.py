"""Contamination: which items lie in the training data, in which document of which shard, and the scores without them."""

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
PLACES_TOLD = 200


class Contamination:
    """Every item of suites, calibration and other files, looked for in every shard by n-grams of words."""

    def __init__(
        self,
        config: ContaminationConfig,
        suites: Mapping[str, Sequence[Pair]],
        choices: Sequence[Choice],
        others: Sequence[Item] = (),
    ) -> None:
        self.config = config
        self.items = [
            Item(measure=suite, key=pair.key, texts=(joined(pair.context, pair.more), joined(pair.context, pair.less)))
            for suite, pairs in suites.items()
            for pair in pairs
        ]
        self.items += [
            Item(measure="calibration", key=f"calibration:{one.number}", texts=(one.question, *one.options)) for one in choices
        ]
        self.items += others
        self.items += [item for path in config.against for item in read_items(path)]
        self.shards = list_shards([one.path for one in weighted(config.data)])

    @cached_property
    def index(self) -> NgramIndex:
        """The index of all items; built by the ranks that search."""
        return NgramIndex.build([item.texts for item in self.items], self.config.ngram)

    @property
    def measures(self) -> list[str]:
        """Where items come from, in order."""
        return list(dict.fromkeys(item.measure for item in self.items))

    def score_names(self) -> list[str]:
        """The share of items that were found: of all, and by where they come from."""
        return [RATE, *(f"{name}/{RATE}" for name in self.measures)]

    def questions(self, opened: OpenModel) -> list[Question]:
        """A task for each shard."""
        return [
            Task(key=f"contamination:{number}", work=partial(self._search, one), cost=one.shard.documents)
            for number, one in enumerate(self.shards)
        ]

    def _search(self, shard: TrainingShard) -> dict[str, Any]:
        found = []
        for documents in text_batches(shard):
            for overlap in self.index.overlaps(TextBatch.of([document.text for document in documents])):
                document = documents[overlap.text]
                found.append([overlap.item, document.id, document.row, round(overlap.share, 4)])
        return {"found": found, "documents": shard.shard.documents}

    def judge(self, answers: Mapping[str, Answer]) -> Judged:
        """Rates, and each place where an item was found."""
        places: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for number, shard in enumerate(self.shards):
            for item, document, row, share in answers[f"contamination:{number}"]["found"]:
                places[item].append({"shard": shard.name, "document": document, "row": row, "share": share})
        asked = hash_of([item.texts for item in self.items], self.config.ngram, [one.shard.checksum for one in self.shards])
        judged = Judged(scores={}, items=[], tables={}, notes=[], plots={})
        for number, item in enumerate(self.items):
            row = {
                "measure": "contamination",
                "key": f"contamination/{item.key}",
                "of": item.key,
                "value": float(number in places),
            }
            judged.items.append({**row, "from": item.measure, "group": item.key, "places": places.get(number, [])})
        judged.scores[RATE] = mean_score([item["value"] for item in judged.items], hash=asked)
        for name in self.measures:
            values = [item["value"] for item in judged.items if item["from"] == name]
            judged.scores[f"{name}/{RATE}"] = mean_score(values, hash=asked)
        told = [
            {"item": item["of"], **place}
            for item in judged.items
            for place in sorted(item["places"], key=lambda one: -one["share"])
        ]
        title = f"Items in the training data ({self.config.ngram} words in a row, one of which may differ)"
        judged.tables[title] = told[:PLACES_TOLD] or [
            {"item": "none found", "shard": "", "document": "", "row": None, "share": None}
        ]
        if short := self.index.too_short:
            judged.notes.append(f"{short} of {len(self.items)} items have fewer than 8 words, and were not looked for.")
        return judged


def joined(context: str, sentence: str) -> str:
    """A sentence behind its context."""
    return f"{context} {sentence}".strip()


def clean_rows(judged: Judged) -> list[dict[str, Any]]:
    """The mean of each measure on items that are in the training data, and on those that are not."""
    found = {item["of"]: item["value"] for item in judged.items if item["measure"] == "contamination"}
    rows = []
    for measure in dict.fromkeys(item["measure"] for item in judged.items if item["key"] in found):
        items = [item for item in judged.items if item["measure"] == measure and item["key"] in found]
        row: dict[str, Any] = {"measure": measure}
        for name, wanted in (("clean", 0.0), ("contaminated", 1.0)):
            part = [item for item in items if found[item["key"]] == wanted]
            score = mean_score([one["value"] for one in part], hash="", groups=[one["group"] for one in part]) if part else None
            row[name] = score.value if score else None
            row[f"{name} standard error"] = score.standard_error if score else None
            row[f"{name} items"] = len(part)
        rows.append(row)
    return rows
