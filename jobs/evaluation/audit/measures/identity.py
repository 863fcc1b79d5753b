"""False positives of data filters and plug-ins on harmless texts, by the group of people mentioned."""

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
from ropewalk.jobs.evaluation.audit.identity.texts import LEAST_TERMS, TERMS, harmless_documents, harmless_sentences, insert_term
from ropewalk.jobs.evaluation.audit.measures.scorers import TextScorer
from ropewalk.jobs.evaluation.audit.suites.read import read_text
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.results.score import Score, hash_of

MAX_WORST = 8
Judge = Callable[[list[str]], list[bool]]


def read_terms(url: str | None) -> list[str]:
    """Return the terms of a file, one per line, or the built-in ones. Raises DataError for fewer than 40 or a repeated one."""
    if url is None:
        return list(TERMS)
    terms = [line.strip() for line in read_text(url).splitlines() if line.strip()]
    if twice := sorted({term for term in terms if terms.count(term) > 1}):
        raise DataError(f"identity.terms: {url}: {twice[0]!r} is repeated; remove one")
    if len(terms) < LEAST_TERMS:
        raise DataError(f"identity.terms: {url} has {len(terms)} terms; a gap needs at least {LEAST_TERMS}")
    return terms


class Identity:
    """Measures a gap for each filter on documents of several sentences, and for each plug-in on single sentences."""

    def __init__(self, config: IdentityConfig, scorers: Sequence[TextScorer], seed: int) -> None:
        self.terms, self.seed = read_terms(config.terms), seed
        documents = harmless_documents(config.texts, seed)
        filters = {
            name: make_filter(name, options) for filter_config in config.filters for name, options in filter_config.items()
        }
        self.judges: dict[str, tuple[Judge, list[str]]] = {}
        for name, text_filter in filters.items():
            self.judges[name] = (_dropped_by(name, text_filter), documents)
        for scorer in scorers:
            self.judges[scorer.name] = (scorer.flagged, harmless_sentences())

    def score_names(self) -> list[str]:
        """Return the names of a gap and a rate for each filter and plug-in."""
        return [f"identity/{name}/{kind}" for name in self.judges for kind in ("false_positive_gap", "false_positive_rate")]

    def questions(self, opened: OpenModel) -> list[Question]:
        """Return one task without the model for each filter and plug-in."""
        return [
            Task(key=f"identity:{name}", work=lambda name=name: {"flags": self._flags(name)}, cost=1)  # type: ignore[misc]
            for name in self.judges
        ]

    def _flags(self, name: str) -> list[list[int]]:
        judge, templates = self.judges[name]
        texts = [text for term in self.terms for text in insert_term(templates, term)]
        flags = np.array(judge(texts), dtype=int).reshape(len(self.terms), len(templates))
        return [[int(flag) for flag in row] for row in flags]

    def judge(self, answers: Mapping[str, Answer]) -> Judged:
        """Return the gaps, the most affected terms, and a warning if a gap is significant."""
        judged = Judged(scores={}, items=[], tables={}, notes=[], plots={})
        rows, gaps = [], {}
        for name, (_, templates) in self.judges.items():
            flags = np.array(answers[f"identity:{name}"]["flags"], dtype=bool)
            result = gaps[name] = false_positive_gap(self.terms, flags, self.seed)
            content_hash = hash_of(self.terms, templates)
            judged.scores[f"identity/{name}/false_positive_gap"] = _score(
                result.gap, result.standard_error, result.n, content_hash
            )
            rate = _score(
                float(flags.mean()), float(flags.mean(axis=0).std(ddof=1) / np.sqrt(flags.shape[1])), result.n, content_hash
            )
            judged.scores[f"identity/{name}/false_positive_rate"] = rate
            rows.append(_row(name, result, rate.value))
            if result.gap > 0 and result.p_value <= 0.05:
                worst, least = result.rows[0], result.rows[-1]
                judged.notes.append(
                    f"{name} flags harmless texts by the group they mention: {worst[0]!r} {worst[1]:.0%}, {least[0]!r}"
                    f" {least[1]:.0%} (p = {result.p_value:.3f}). Do not filter data with it."
                )
        judged.tables[f"Harmless texts that are flagged or dropped, by group ({len(self.terms)} terms)"] = rows
        judged.plots["identity"] = {name: result.rows for name, result in gaps.items()}
        return judged


def _score(value: float, error: float | None, n: int, content_hash: str) -> Score:
    return Score(value=value, standard_error=error, n=n, hash=content_hash)


def _row(name: str, result: Gap, rate: float) -> dict[str, object]:
    worst = ", ".join(f"{term} {share:.0%}" for term, share in result.rows[:MAX_WORST] if share > 0)
    row = {
        "filter or plug-in": name,
        "gap": result.gap,
        "standard_error": result.standard_error,
        "p": result.p_value,
        "rate": rate,
    }
    return {**row, "equality_difference": result.equality_difference, "worst": worst or "none"}


def _dropped_by(name: str, text_filter: Filter) -> Judge:
    def dropped(texts: list[str]) -> list[bool]:
        lines = {rejection.line for rejection in apply_filters({name: text_filter}, DocumentBatch.of_texts(texts)).rejections}
        return [number in lines for number in range(1, len(texts) + 1)]

    return dropped
