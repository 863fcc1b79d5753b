"""False positives of data filters and of plug-ins on harmless texts, by the group of people that these mention."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ropewalk.cluster.errors import DataError
from ropewalk.datapipe.filters.applying import apply_filters
from ropewalk.datapipe.filters.filter import Filter
from ropewalk.datapipe.filters.registry import make_filter
from ropewalk.datapipe.text.document_batch import DocumentBatch
from ropewalk.jobs.evaluation.audit.asking.question import Answer, Judged, Question, Task
from ropewalk.jobs.evaluation.audit.config import IdentityConfig
from ropewalk.jobs.evaluation.audit.identity.gap import Gap, false_positive_gap
from ropewalk.jobs.evaluation.audit.identity.texts import LEAST_TERMS, TERMS, harmless_documents, harmless_sentences, written
from ropewalk.jobs.evaluation.audit.measures.scorers import TextScorer
from ropewalk.jobs.evaluation.audit.suites.read import read_text
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.results.score import Score, hash_of

WORST_TOLD = 8
Judge = Callable[[list[str]], list[bool]]


def read_terms(url: str | None) -> list[str]:
    """The terms of a file, a line each, or the built-in ones. Raises DataError for fewer than 40, or one given twice."""
    if url is None:
        return list(TERMS)
    terms = [line.strip() for line in read_text(url).splitlines() if line.strip()]
    if twice := sorted({term for term in terms if terms.count(term) > 1}):
        raise DataError(f"identity.terms: {url}: {twice[0]!r} is there twice; remove one")
    if len(terms) < LEAST_TERMS:
        raise DataError(f"identity.terms: {url} has {len(terms)} terms; a gap over fewer than {LEAST_TERMS} says too little")
    return terms


class Identity:
    """A gap for each filter, by documents of several sentences, and for each plug-in, by single sentences."""

    def __init__(self, config: IdentityConfig, scorers: Sequence[TextScorer], seed: int) -> None:
        self.terms, self.seed = read_terms(config.terms), seed
        documents = harmless_documents(config.texts, seed)
        filters = {name: make_filter(name, options) for one in config.filters for name, options in one.items()}
        self.judges: dict[str, tuple[Judge, list[str]]] = {}
        for name, one in filters.items():
            self.judges[name] = (_dropped_by(name, one), documents)
        for scorer in scorers:
            self.judges[scorer.name] = (scorer.flagged, harmless_sentences())

    def score_names(self) -> list[str]:
        """A gap and a rate for each."""
        return [f"identity/{name}/{kind}" for name in self.judges for kind in ("false_positive_gap", "false_positive_rate")]

    def questions(self, opened: OpenModel) -> list[Question]:
        """Work without the model: each filter and each plug-in is one task."""
        return [
            Task(key=f"identity:{name}", work=lambda name=name: {"flags": self._flags(name)}, cost=1)  # type: ignore[misc]
            for name in self.judges
        ]

    def _flags(self, name: str) -> list[list[int]]:
        judge, templates = self.judges[name]
        texts = [text for term in self.terms for text in written(templates, term)]
        flags = np.array(judge(texts), dtype=int).reshape(len(self.terms), len(templates))
        return [[int(flag) for flag in row] for row in flags]

    def judge(self, answers: Mapping[str, Answer]) -> Judged:
        """The gaps, the terms that fare worst, and a warning where the gap is no accident."""
        judged = Judged(scores={}, items=[], tables={}, notes=[], plots={})
        rows, gaps = [], {}
        for name, (_, templates) in self.judges.items():
            flags = np.array(answers[f"identity:{name}"]["flags"], dtype=bool)
            found = gaps[name] = false_positive_gap(self.terms, flags, self.seed)
            asked = hash_of(self.terms, templates)
            judged.scores[f"identity/{name}/false_positive_gap"] = _score(found.gap, found.standard_error, found.n, asked)
            rate = _score(float(flags.mean()), float(flags.mean(axis=0).std(ddof=1) / np.sqrt(flags.shape[1])), found.n, asked)
            judged.scores[f"identity/{name}/false_positive_rate"] = rate
            rows.append(_row(name, found, rate.value))
            if found.gap > 0 and found.p_value <= 0.05:
                worst, least = found.rows[0], found.rows[-1]
                judged.notes.append(
                    f"{name} flags harmless texts by the group they mention: {worst[0]!r} {worst[1]:.0%}, {least[0]!r}"
                    f" {least[1]:.0%} (p = {found.p_value:.3f}). Do not filter data with it."
                )
        judged.tables[f"Harmless texts that are flagged or dropped, by group ({len(self.terms)} terms)"] = rows
        judged.plots["identity"] = {name: found.rows for name, found in gaps.items()}
        return judged


def _score(value: float, error: float | None, n: int, asked: str) -> Score:
    return Score(value=value, standard_error=error, n=n, hash=asked)


def _row(name: str, found: Gap, rate: float) -> dict[str, object]:
    worst = ", ".join(f"{term} {share:.0%}" for term, share in found.rows[:WORST_TOLD] if share > 0)
    row = {"filter or plug-in": name, "gap": found.gap, "standard_error": found.standard_error, "p": found.p_value, "rate": rate}
    return {**row, "equality_difference": found.equality_difference, "worst": worst or "none"}


def _dropped_by(name: str, one: Filter) -> Judge:
    def dropped(texts: list[str]) -> list[bool]:
        lines = {rejection.line for rejection in apply_filters({name: one}, DocumentBatch.of_texts(texts)).rejections}
        return [number in lines for number in range(1, len(texts) + 1)]

    return dropped
