"""Judgement of a canary: answers, errors and ratings of the candidate, compared with production."""

import math
from collections.abc import Mapping
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
MIN_RATED = 10  # rated conversations per side below which ratings are not compared
FAILED = frozenset({"failed", "deadline"})  # outcomes counted as errors of the model or its server
SERVER_ERROR = 500
RATING_VALUES: Mapping[str | None, int] = {"up": 1, "down": -1}


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Answers, errors and ratings of one version since the canary started."""

    answers: int = 0
    errors: int = 0
    liked: int = 0  # conversations, as is `disliked`
    disliked: int = 0


@dataclass(frozen=True, kw_only=True)
class CanaryResult:
    """Final result of a canary."""

    state: State  # held: no run serves it, so it stays a candidate
    message: str
    candidate: Tally
    production: Tally

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def judge_canary(config: CanaryConfig, candidate: Tally, production: Tally, seconds: float) -> CanaryResult | None:
    """Judge both versions by their record over `seconds`; None if it is too early.

    Before `most_minutes` the errors are related to the number of answers still expected; afterwards to the number observed.
    """
    sides = {"candidate": candidate, "production": production}
    time_is_up = seconds >= 60 * config.most_minutes
    num_expected = candidate.answers if time_is_up else max(config.requests, candidate.answers)
    if candidate.errors > config.max_error_rate * num_expected:
        error_message = f"{candidate.errors} of its {candidate.answers} answers failed; at most {config.max_error_rate:.1%} may"
        return CanaryResult(state="refused", message=error_message, **sides)
    if (complaint := liked_less(candidate, production)) is not None:
        return CanaryResult(state="refused", message=complaint, **sides)
    counts = f"{candidate.answers} answers, {candidate.errors} failed"
    if seconds >= 60 * config.minutes and candidate.answers >= config.requests:
        return CanaryResult(state="passed", message=counts, **sides)
    if time_is_up:
        return CanaryResult(
            state="passed", message=f"{counts}: too few for a judgement after {seconds / 60:.0f} minutes", **sides
        )
    return None


def liked_less(candidate: Tally, production: Tally) -> str | None:
    """Return a message if the candidate's answers are liked significantly less than production's, else None.

    The threshold is three standard errors, since the test is repeated while the canary runs.
    """
    num_rated, num_rated_production = candidate.liked + candidate.disliked, production.liked + production.disliked
    if min(num_rated, num_rated_production) < MIN_RATED:
        return None
    share, production_share = candidate.liked / num_rated, production.liked / num_rated_production
    pooled = (candidate.liked + production.liked) / (num_rated + num_rated_production)
    error = math.sqrt(pooled * (1 - pooled) * (1 / num_rated + 1 / num_rated_production))
    if share >= production_share or production_share - share <= 3 * error:
        return None
    return (
        f"{share:.0%} of its rated conversations are liked (n = {num_rated}), "
        f"{production_share:.0%} of production's (n = {num_rated_production})"
    )


def tallies(run: RunDir, versions: tuple[str, str], since: float) -> tuple[Tally, Tally]:
    """Count answers and ratings of the candidate and of production in a serving run since a time, one rating per conversation.

    An answer that was not captured counts as a conversation of its own.
    """
    folder = run.path / FOLDER
    rows = list(answers_store(folder).rows(since, ("id", "version", "outcome", "status")))
    ratings = {row["exchange"]: row["rating"] for row in ratings_store(folder).rows(since, ("exchange", "rating"))}
    captured = exchanges_store(folder).rows(since, ("id", "conversation")) if ratings else ()
    conversations = {row["id"]: row["conversation"] for row in captured if row["id"] in ratings and row["conversation"]}
    first, second = (_tally([row for row in rows if row["version"] == version], ratings, conversations) for version in versions)
    return first, second


def _tally(rows: list[dict[str, Any]], ratings: Mapping[str, str | None], conversations: Mapping[str, str]) -> Tally:
    votes = [
        (conversations.get(row["id"], row["id"]), value)
        for row in rows
        if (value := RATING_VALUES.get(ratings.get(row["id"]))) is not None
    ]
    balance = by_conversation(votes)
    errors = sum(row["outcome"] in FAILED or (row["status"] or 0) >= SERVER_ERROR for row in rows)
    return Tally(answers=len(rows), errors=errors, liked=balance.count(1), disliked=balance.count(-1))


def check_canary(
    config: CanaryConfig, served: RunDir, candidate: Version, production: Version, *, since: float, now: float
) -> CanaryResult | None:
    """Check a canary once; None while it continues."""
    first, second = tallies(served, (candidate.id, production.id), since)
    sides = {"candidate": first, "production": second}
    model = RegisteredModel(candidate.root, candidate.model)
    if cause := refusal(candidate, CANDIDATE, served, since):
        return CanaryResult(state="refused", message=cause, **sides)
    if (current := model.current(CANDIDATE)) is None or current.number != candidate.number:
        moves = model.history(CANDIDATE)
        by = f" ({moves[-1].by}: {moves[-1].reason or moves[-1].kind})" if moves else ""
        return CanaryResult(state="refused", message=f"the alias {CANDIDATE} no longer points to it{by}", **sides)
    result = judge_canary(config, first, second, now - since)
    if result is not None and result.state == "refused":
        return result
    if (outcome := final_outcome(served)) is not None:
        message = f"the serving run {served.id} has ended ({outcome.state}); no run serves the candidate"
        return CanaryResult(state="held", message=message, **sides)
    return result


def refusal(version: Version, alias: str, served: RunDir, since: float) -> str | None:
    """Return the reason the serving run refused the version since a time, or None if it has not."""
    records = [
        record
        for record in rollouts(version.root, version.model)
        if record.version == version.number and record.time >= since and served.id in record.by
    ]
    own_records = [record for record in records if record.alias.rpartition("@")[2] == alias]
    newest = (own_records or records)[-1:]
    return f"the serving run refused it: {newest[0].cause}" if newest and newest[0].state == "refused" else None


def check_promotion(served: RunDir, version: Version, since: float) -> CanaryResult | None:
    """Return the outcome of a promotion in the serving run, or None while the run has not reported one."""
    none = Tally()
    if cause := refusal(version, PRODUCTION, served, since):
        return CanaryResult(state="refused", message=cause, candidate=none, production=none)
    records = [
        record for record in rollouts(version.root, version.model) if record.version == version.number and record.time >= since
    ]
    if any(record.state == "serving" and served.id in record.by for record in records):
        return CanaryResult(state="passed", message=f"{served.id} serves it", candidate=none, production=none)
    if final_outcome(served) is not None:
        return CanaryResult(
            state="passed", message=f"{served.id} has ended; the next serving run will serve it", candidate=none, production=none
        )
    return None
