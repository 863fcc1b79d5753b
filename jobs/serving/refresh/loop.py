"""A round, from what people said to a model that serves or was refused: each stage begins where a killed driver left off."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.models.registry.directory import model_directory
from ropewalk.jobs.models.registry.promote import promote, rollback, withdraw
from ropewalk.jobs.models.registry.register import register
from ropewalk.jobs.models.registry.weights import newest_step
from ropewalk.jobs.runs.models.model_versions import Version, find_version
from ropewalk.jobs.serving.refresh.canary import Ruling, settled, watch
from ropewalk.jobs.serving.refresh.config import RefreshConfig
from ropewalk.jobs.serving.refresh.judge import judge, refused
from ropewalk.jobs.serving.refresh.plan import BASE, CANDIDATE, Plan, Step
from ropewalk.jobs.serving.refresh.rounds import Round, read_rounds
from ropewalk.jobs.serving.refresh.steps import Steps
from ropewalk.jobs.serving.refresh.trigger import Trigger

APPROVED = "approved"  # a user's word on a round, among the requests of the run: {round, yes, by, why}
PREPARED = "data.json"  # in a run of finetune: where the data set lies that its conversations became


class Loop:
    """The rounds of a refresh."""

    def __init__(
        self,
        context: JobContext,
        config: RefreshConfig,
        steps: Steps,
        trigger: Trigger,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.context, self.config, self.steps, self.trigger, self.clock = context, config, steps, trigger, clock
        self.run = context.run
        self.root = self.run.path.parent
        self.served = trigger.served
        self.by = f"refresh:{self.run.id}"

    def drive(self, report: Callable[[], None]) -> None:
        """Go through the rounds that are left. Raises StopRequested, StepFailedError, ConfigError."""
        number = max(1, len(read_rounds(self.run)))
        while self.config.rounds is None or number <= self.config.rounds:
            round_ = Round(self.context, number)
            if not round_.over:
                self.go(round_)
                self.run.event("round_ended", round=number, outcome=round_.facts["outcome"], words=round_.facts["words"])
                report()
            number += 1

    def go(self, round_: Round) -> None:
        """Go through one round, or what is left of it, to its outcome."""
        began = round_.once("began", self.clock)
        earlier = [facts for facts in read_rounds(self.run) if facts["round"] < round_.number]
        since = _learnt_until(earlier)
        self._await_trigger(round_, began, earlier)
        base = self._version(round_.once("base", lambda: self.config.base(self.root).id))
        plan = self.config.plan(f"{self.config.name or 'refresh'}-{round_.number}", self._group())
        collected = self._finish(round_, plan.collect(since, round_.facts["trigger"]["time"]))
        found = collected.results()
        round_.once("data", lambda: {"run": collected.id, **found["counts"]})
        if found["counts"]["new"] < self.config.least_conversations:
            few = f"{found['counts']['new']} new conversations, and a round learns from {self.config.least_conversations} or more"
            return self._end(round_, "nothing to learn", few)
        trained, step = self._train(round_, plan, base, collected, found)
        ref = round_.once("candidate", lambda: f"{trained.id}@{step}")
        if not self._judged(round_, plan, base, ref)["passed"]:
            return self._end(round_, "refused", "; ".join(round_.facts["verdict"]["reasons"]))
        if self.config.approve and not self._approved(round_)["yes"]:
            word = round_.facts["approval"]
            why = f": {word['why']}" if word.get("why") else ""
            return self._end(round_, "not approved", f"{word['by']} said no{why}")
        return self._promote(round_, base, ref)

    # --- stages

    def _await_trigger(self, round_: Round, began: float, earlier: list[dict[str, Any]]) -> None:
        before = float(earlier[-1]["trigger"]["time"]) if earlier else None
        looked_at = [facts["looks"] for facts in (*earlier, round_.facts) if "looks" in facts]
        looks: dict[str, Any] = dict(looked_at[-1]) if looked_at else {}
        while "trigger" not in round_.facts:
            looked = dict(looks)
            found = self.trigger.ask(began, before, looks)
            if looks != looked:
                round_.settle("looks", looks)
            if found is not None:
                round_.settle("trigger", found)
                self.run.event("round_began", round=round_.number, why=found["words"])
            else:
                self._pause(self.config.trigger.look_seconds)

    def _train(self, round_: Round, plan: Plan, base: Version, collected: RunDir, found: dict[str, Any]) -> tuple[RunDir, int]:
        """The run and the step of the candidate: fine-tuned from production, and aligned where there are pairs enough."""
        start = {"path": base.path} if base.path is not None else {"run": base.run, "step": base.step}
        trained = self._finish(round_, plan.train(start, str(collected.path / found["conversations"])))
        step = newest_step(trained)
        if self.config.align and found["counts"]["pairs"] >= self.config.least_pairs:
            more = plan.align({"run": trained.id, "step": step}, str(collected.path / found["pairs"]))
            trained = self._finish(round_, more)
            step = newest_step(trained)
        return trained, step

    def _judged(self, round_: Round, plan: Plan, base: Version, ref: str) -> dict[str, Any]:
        if "verdict" in round_.facts:
            return dict(round_.facts["verdict"])
        evaluations = audits = None
        gate = self.config.gate
        if gate.evaluate:
            evaluations = self._both(round_, plan.evaluate, base, ref)
        # what one gate has refused, no other can save
        if gate.audit and not (evaluations and refused(evaluations[0])):
            audits = self._both(round_, lambda side, model: plan.audit(side, model, self._learnt_data(round_)), base, ref)
        return dict(round_.once("verdict", lambda: judge(evaluations, audits, gate.margin)))

    def _both(self, round_: Round, step: Callable[[str, str], Step], base: Version, ref: str) -> tuple[RunDir, RunDir]:
        candidate = self._finish(round_, step(CANDIDATE, ref))
        return candidate, self._finish(round_, step(BASE, base.ref))

    def _approved(self, round_: Round) -> dict[str, Any]:
        """What a person says of this round."""
        while "approval" not in round_.facts:
            word = self.run.requests.get(APPROVED)
            if word and int(word["round"]) == round_.number:
                round_.settle("approval", word)
            else:
                if "asked" not in round_.facts:
                    round_.settle("asked", self.clock())
                    self.run.event("approval_awaited", round=round_.number, candidate=round_.facts["candidate"])
                self._pause(1.0)
        return dict(round_.facts["approval"])

    def _promote(self, round_: Round, base: Version, ref: str) -> None:
        """Candidate, canary, production, and what the serving run makes of it."""
        version = register(ref, base.model, self.root, by=self.by)
        round_.once("version", lambda: version.id)
        model_directory(version)  # so that no engine waits for it, and no rollback
        if self.config.canary is not None and self.config.alias != CANDIDATE:
            ruling = self._canary(round_, base, version)
            if ruling["state"] != "passed":
                if ruling["state"] == "refused":
                    withdraw(version.model, self.root, ruling["words"], only=version.number, by=self.by)
                return self._end(round_, "refused by its canary" if ruling["state"] == "refused" else "held", ruling["words"])
        began = round_.once("promoting", self.clock)
        key = f"{self.run.id}/{round_.number}/{self.config.alias}"
        try:
            promote(
                *(version.id, self.config.alias),
                root=self.root,
                key=key,
                by=self.by,
                expected=lambda current: current == base.number,
                reason=f"round {round_.number} of {self.run.id}",
            )
        except ConfigError as error:  # its gate, or somebody else was faster
            withdraw(version.model, self.root, str(error), only=version.number, by=self.by)
            return self._end(round_, "not promoted", str(error))
        found = self._settled(round_, version, began) if self.config.canary is not None else None
        if found is not None and found["state"] == "refused":
            undo = {"only": version.number, "by": self.by, "reason": found["words"], "key": f"{key}/back"}
            rollback(self.config.alias, model=version.model, root=self.root, **undo)
            return self._end(round_, "rolled back", found["words"])
        words = f"{version.id} is {self.config.alias} in the place of {base.id}"
        return self._end(round_, "promoted", f"{words}; {found['words']}" if found else words)

    def _canary(self, round_: Round, base: Version, version: Version) -> dict[str, Any]:
        assert self.config.canary is not None
        since = round_.once("canary began", self.clock)
        key = f"{self.run.id}/{round_.number}/{CANDIDATE}"
        if "canary" not in round_.facts:
            promote(version.id, CANDIDATE, root=self.root, key=key, by=self.by, reason=f"round {round_.number} of {self.run.id}")
        while "canary" not in round_.facts:
            found = watch(self.config.canary, self.served, version, base, since=since, now=self.clock())
            if found is not None:
                round_.settle("canary", found.plain())
            else:
                self._pause(1.0)
        return dict(round_.facts["canary"])

    def _settled(self, round_: Round, version: Version, began: float) -> dict[str, Any]:
        assert self.config.canary is not None
        while "settled" not in round_.facts:
            found: Ruling | None = settled(self.served, version, began)
            if found is not None:
                round_.settle("settled", found.plain())
            elif self.clock() - began > 60 * self.config.canary.settle_minutes:
                words = f"{self.served.id} has not said in {self.config.canary.settle_minutes:g} minutes that it serves it"
                round_.settle("settled", {"state": "passed", "words": words})
            else:
                self._pause(1.0)
        return dict(round_.facts["settled"])

    # --- what the stages have in common

    def _finish(self, round_: Round, step: Step) -> RunDir:
        run = self.steps.finish(round_.number, step)
        round_.once(f"step {step.name}", lambda: {"run": run.id, "ended": self.clock()})
        return run

    def _end(self, round_: Round, outcome: str, words: str) -> None:
        round_.once("ended", self.clock)
        round_.once("words", lambda: words)
        round_.once("outcome", lambda: outcome)  # last: from now on the round is over

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self.steps.wait()
        while time.monotonic() < deadline:
            self.steps.wait()

    def _learnt_data(self, round_: Round) -> str | None:
        """The prepared data set of the round's training run."""
        run = self.root / round_.facts["step train"]["run"]
        record = read_json(run / PREPARED)
        return os.path.normpath(Path(run) / str(record["path"])) if record else None

    def _version(self, name: str) -> Version:
        found = find_version(name, self.root)
        assert found is not None, name
        return found

    def _group(self) -> str:
        return str(self.run.record["config"]["wandb"].get("group") or self.run.id)


def _learnt_until(earlier: list[dict[str, Any]]) -> float | None:
    """The end of what the last promoted model has learnt from; None: nothing was promoted yet."""
    promoted = [facts for facts in earlier if facts.get("outcome") == "promoted"]
    return float(promoted[-1]["trigger"]["time"]) if promoted else None
