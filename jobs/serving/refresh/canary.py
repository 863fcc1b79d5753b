"""A candidate that answers a share of the conversations: whether it has done so long enough, and well enough."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.models.registry.deployments import rollouts
from ropewalk.jobs.runs.models.model_versions import CANDIDATE, PRODUCTION, RegisteredModel, Version
from ropewalk.jobs.runs.show.status import final_outcome
from ropewalk.jobs.serving.feedback.records import FOLDER, answers_store, exchanges_store, ratings_store
from ropewalk.jobs.serving.feedback.summary import by_conversation
from ropewalk.jobs.serving.refresh.config import CanaryConfig

State = Literal["passed", "refused", "held"]
FEW_RATINGS = 10  # fewer rated conversations of either side say nothing
FAILED = frozenset({"failed", "deadline"})  # outcomes that the model, or what serves it, is to blame for
SERVER_ERROR = 500
LIKING: Mapping[str | None, int] = {"up": 1, "down": -1}


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What one version has done since the canary began."""

    answers: int = 0
    errors: int = 0
    liked: int = 0  # conversations
    disliked: int = 0


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """The end of a canary."""

    state: State  # held: nobody serves it, and it stays a candidate
    words: str
    candidate: Tally
    production: Tally

    def plain(self) -> dict[str, Any]:
        """The ruling as JSON has it."""
        return asdict(self)


def rule(config: CanaryConfig, candidate: Tally, production: Tally, seconds: float) -> Ruling | None:
    """Judge what both versions have done in so many seconds; None: too early.

    Before `most_minutes` errors are held against the answers that are still to come; from then on against those that there are.
    """
    sides = {"candidate": candidate, "production": production}
    over = seconds >= 60 * config.most_minutes
    judged = candidate.answers if over else max(config.requests, candidate.answers)
    if candidate.errors > config.max_error_rate * judged:
        rate = f"{candidate.errors} of its {candidate.answers} answers failed, and {config.max_error_rate:.1%} may"
        return Ruling(state="refused", words=rate, **sides)
    if (words := liked_less(candidate, production)) is not None:
        return Ruling(state="refused", words=words, **sides)
    told = f"{candidate.answers} answers, {candidate.errors} failed"
    if seconds >= 60 * config.minutes and candidate.answers >= config.requests:
        return Ruling(state="passed", words=told, **sides)
    if over:
        return Ruling(state="passed", words=f"{told}: too few to tell, after {seconds / 60:.0f} minutes", **sides)
    return None


def liked_less(candidate: Tally, production: Tally) -> str | None:
    """In words, that people like the candidate's answers less, by more than chance (three standard errors: it is looked at
    again and again); None: not shown.
    """
    mine, others = candidate.liked + candidate.disliked, production.liked + production.disliked
    if min(mine, others) < FEW_RATINGS:
        return None
    own, other = candidate.liked / mine, production.liked / others
    pooled = (candidate.liked + production.liked) / (mine + others)
    error = math.sqrt(pooled * (1 - pooled) * (1 / mine + 1 / others))
    if own >= other or other - own <= 3 * error:
        return None
    return f"people like {own:.0%} of its conversations (n = {mine}), and {other:.0%} of production's (n = {others})"


def tallies(run: RunDir, versions: tuple[str, str], since: float) -> tuple[Tally, Tally]:
    """What the candidate and production have answered in a serving run since then, and what people said of it: a conversation
    counts once. What is not captured belongs to none that is known, and counts by itself.
    """
    folder = run.path / FOLDER
    rows = answers_store(folder).read(since).to_pylist()
    said = {str(row["answer_id"]): row for row in ratings_store(folder).read(since).to_pylist()}
    captured = exchanges_store(folder).read(since).select(["id", "conversation"]).to_pylist()
    begun = {str(row["id"]): str(row["conversation"]) for row in captured if row["conversation"]}
    first, second = (_tally([row for row in rows if row["version"] == version], said, begun) for version in versions)
    return first, second


def _tally(rows: list[dict[str, Any]], said: Mapping[str, Mapping[str, Any]], begun: Mapping[str, str]) -> Tally:
    ratings = []
    for row in rows:
        opinion = said.get(str(row["answer_id"])) or said.get(str(row["id"])) or {}
        if (liking := LIKING.get(opinion.get("rating"))) is not None:
            ratings.append((begun.get(str(row["id"]), str(row["id"])), liking))
    found = by_conversation(ratings)
    errors = sum(row["outcome"] in FAILED or (row["status"] or 0) >= SERVER_ERROR for row in rows)
    return Tally(answers=len(rows), errors=errors, liked=found.count(1), disliked=found.count(-1))


def watch(
    config: CanaryConfig, served: RunDir, candidate: Version, production: Version, *, since: float, now: float
) -> Ruling | None:
    """Look at a canary once; None: it goes on."""
    first, second = tallies(served, (candidate.id, production.id), since)
    sides = {"candidate": first, "production": second}
    model = RegisteredModel(candidate.root, candidate.model)
    if cause := refusal(candidate, CANDIDATE, served, since):
        return Ruling(state="refused", words=cause, **sides)
    if (current := model.current(CANDIDATE)) is None or current.number != candidate.number:
        moves = model.history(CANDIDATE)
        by = f" ({moves[-1].by}: {moves[-1].reason or moves[-1].kind})" if moves else ""
        return Ruling(state="refused", words=f"it was taken away from {CANDIDATE}{by}", **sides)
    found = rule(config, first, second, now - since)
    if found is not None and found.state == "refused":
        return found
    if (outcome := final_outcome(served)) is not None:
        words = f"the serving run {served.id} is over ({outcome.state}), and nobody serves the candidate"
        return Ruling(state="held", words=words, **sides)
    return found


def refusal(version: Version, alias: str, served: RunDir, since: float) -> str | None:
    """Why the serving run refused the version since then, in words; None: it has not."""
    told = [
        one
        for one in rollouts(version.root, version.model)
        if one["version"] == version.number and one["time"] >= since and served.id in str(one["by"])
    ]
    mine = [one for one in told if one["alias"].rpartition("@")[2] == alias]
    last = (mine or told)[-1:]
    return f"the serving run refused it: {last[0]['cause']}" if last and last[0]["state"] == "refused" else None


def settled(served: RunDir, version: Version, since: float) -> Ruling | None:
    """What became of a version that was promoted: whether the serving run serves it; None: it has not said so yet."""
    none = Tally()
    if cause := refusal(version, PRODUCTION, served, since):
        return Ruling(state="refused", words=cause, candidate=none, production=none)
    told = [one for one in rollouts(version.root, version.model) if one["version"] == version.number and one["time"] >= since]
    if any(one["state"] == "serving" and served.id in str(one["by"]) for one in told):
        return Ruling(state="passed", words=f"{served.id} serves it", candidate=none, production=none)
    if final_outcome(served) is not None:
        return Ruling(
            state="passed", words=f"{served.id} is over; whoever serves next serves it", candidate=none, production=none
        )
    return None


Look = Callable[[], Ruling | None]
