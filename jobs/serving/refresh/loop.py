"""Rounds of a refresh, from feedback to a promoted or refused model; each stage resumes where a killed driver stopped."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import ConfigError, RopewalkError
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.jobs.models.registry.directory import model_directory
from ropewalk.jobs.models.registry.promote import promote, rollback, withdraw
from ropewalk.jobs.models.registry.register import register
from ropewalk.jobs.models.registry.remove import prune
from ropewalk.jobs.models.registry.weights import newest_step
from ropewalk.jobs.runs.models.model_versions import RegisteredModel, Version, find_version
from ropewalk.jobs.serving.refresh.canary import check_canary, check_promotion
from ropewalk.jobs.serving.refresh.config import RefreshConfig
from ropewalk.jobs.serving.refresh.judge import is_refused, judge
from ropewalk.jobs.serving.refresh.plan import BASE, CANDIDATE, Plan, Step
from ropewalk.jobs.serving.refresh.rounds import Round, read_rounds
from ropewalk.jobs.serving.refresh.steps import Steps
from ropewalk.jobs.serving.refresh.trigger import DriftSchedule, RefreshTrigger

APPROVED = "approved"  # request of the run that holds a user's decision on a round: {round, yes, by, why}
PREPARED = "data.json"  # in a finetune run: the path of its prepared data set


class Loop:
    """Driver of all rounds of a refresh."""

    def __init__(
        self,
        context: JobContext,
        config: RefreshConfig,
        steps: Steps,
        trigger: RefreshTrigger,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.context, self.config, self.steps, self.trigger, self.clock = context, config, steps, trigger, clock
        self.run = context.run
        self.root = self.run.path.parent
        self.served = trigger.served_run
        self.by = f"refresh:{self.run.id}"

    def drive(self, report: Callable[[], None]) -> None:
        """Run the remaining rounds. Raises StopRequested, StepFailedError, ConfigError."""
        number = max(1, len(read_rounds(self.run)))
        while self.config.rounds is None or number <= self.config.rounds:
            round_ = Round(self.context, number)
            if not round_.over:
                self.run_round(round_)
                self.run.event("round_ended", round=number, outcome=round_.facts["outcome"], message=round_.facts["message"])
                self._prune(round_)
                report()
            number += 1

    def run_round(self, round_: Round) -> None:
        """Run the stages of one round that are left."""
        waiting_since = round_.once("waiting_since", self.clock)
        previous = [facts for facts in read_rounds(self.run) if facts["round"] < round_.number]
        since = _trained_until(previous)
        self._await_trigger(round_, waiting_since, previous)
        base = self._version(round_.once("base", lambda: self.config.base(self.root).id))
        plan = self.config.plan(f"{self.config.name or 'refresh'}-{round_.number}", self._group())
        collected = self._finish(round_, plan.collect(since, round_.facts["trigger"]["time"]))
        results = collected.results()
        round_.once("data", lambda: {"run": collected.id, **results["counts"]})
        if results["counts"]["new"] < self.config.least_conversations:
            num_new = results["counts"]["new"]
            message = f"{num_new} new conversations; training needs at least {self.config.least_conversations}"
            return self._end(round_, "nothing to learn", message)
        trained, step = self._train(round_, plan, base, collected, results)
        ref = round_.once("candidate", lambda: f"{trained.id}@{step}")
        if not self._verdict(round_, plan, base, ref)["passed"]:
            return self._end(round_, "refused", "; ".join(round_.facts["verdict"]["reasons"]))
        if self.config.approve and not self._await_approval(round_)["yes"]:
            approval = round_.facts["approval"]
            why = f": {approval['why']}" if approval.get("why") else ""
            return self._end(round_, "not approved", f"{approval['by']} rejected it{why}")
        return self._promote(round_, base, ref)

    def _prune(self, round_: Round) -> None:
        """Remove versions beyond `registry.keep`."""
        if self.config.registry.keep is None:
            return
        model = RegisteredModel(self.root, self._version(round_.facts["base"]).model)
        try:
            removed = prune(model, self.config.registry.keep, by=self.by)
        except (RopewalkError, OSError) as error:  # the next round tries again
            self.run.event("registry_not_pruned", error=str(error))
        else:
            if removed:
                self.run.event("versions_removed", versions=", ".join(version.id for version in removed))

    # --- stages

    def _await_trigger(self, round_: Round, waiting_since: float, previous: list[dict[str, Any]]) -> None:
        last_triggered = float(previous[-1]["trigger"]["time"]) if previous else None
        schedules = [facts["drift_checks"] for facts in (*previous, round_.facts) if "drift_checks" in facts]
        drift = DriftSchedule(**schedules[-1]) if schedules else DriftSchedule()
        while "trigger" not in round_.facts:
            checked = drift.next_check
            reason = self.trigger.due(waiting_since, last_triggered, drift)
            if drift.next_check != checked:
                round_.record("drift_checks", asdict(drift))
            if reason is not None:
                round_.record("trigger", asdict(reason))
                self.run.event("round_started", round=round_.number, reason=reason.message)
            else:
                self._pause(self.config.trigger.look_seconds)

    def _train(self, round_: Round, plan: Plan, base: Version, collected: RunDir, results: dict[str, Any]) -> tuple[RunDir, int]:
        """Return the candidate's run and step: fine-tuned from production, and aligned if there are enough pairs."""
        start = {"path": base.path} if base.path is not None else {"run": base.run, "step": base.step}
        trained = self._finish(round_, plan.train(start, str(collected.path / results["conversations"])))
        step = newest_step(trained)
        if self.config.align and results["counts"]["pairs"] >= self.config.least_pairs:
            alignment = plan.align({"run": trained.id, "step": step}, str(collected.path / results["pairs"]))
            trained = self._finish(round_, alignment)
            step = newest_step(trained)
        return trained, step

    def _verdict(self, round_: Round, plan: Plan, base: Version, ref: str) -> dict[str, Any]:
        if "verdict" in round_.facts:
            return dict(round_.facts["verdict"])
        evaluations = audits = None
        gate = self.config.gate
        if gate.evaluate:
            evaluations = self._measure_both(round_, plan.evaluate, base, ref)
        # a candidate that failed its evaluation needs no audit
        if gate.audit and not (evaluations and is_refused(evaluations[0])):
            audits = self._measure_both(
                round_, lambda side, model: plan.audit(side, model, self._training_data(round_)), base, ref
            )
        return dict(round_.once("verdict", lambda: judge(evaluations, audits, gate.margin)))

    def _measure_both(self, round_: Round, step: Callable[[str, str], Step], base: Version, ref: str) -> tuple[RunDir, RunDir]:
        candidate = self._finish(round_, step(CANDIDATE, ref))
        return candidate, self._finish(round_, step(BASE, base.ref))

    def _await_approval(self, round_: Round) -> dict[str, Any]:
        while "approval" not in round_.facts:
            decision = self.run.requests.get(APPROVED)
            if decision and int(decision["round"]) == round_.number:
                round_.record("approval", decision)
            else:
                if "approval_requested" not in round_.facts:
                    round_.record("approval_requested", self.clock())
                    self.run.event("approval_awaited", round=round_.number, candidate=round_.facts["candidate"])
                self._pause(1.0)
        return dict(round_.facts["approval"])

    def _promote(self, round_: Round, base: Version, ref: str) -> None:
        """Register the candidate, run its canary, promote it, and wait until the serving run confirms or refuses it."""
        version = register(ref, base.model, self.root, by=self.by)
        round_.once("version", lambda: version.id)
        model_directory(version)  # exported now, so that neither an engine nor a rollback waits for it
        if self.config.canary is not None and self.config.alias != CANDIDATE:
            canary = self._canary(round_, base, version)
            if canary["state"] != "passed":
                if canary["state"] == "refused":
                    withdraw(version.model, self.root, canary["message"], only=version.number, by=self.by)
                return self._end(round_, "refused by its canary" if canary["state"] == "refused" else "held", canary["message"])
        began = round_.once("promotion_started", self.clock)
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
        except ConfigError as error:  # its gate refused it, or the alias was moved by someone else
            withdraw(version.model, self.root, str(error), only=version.number, by=self.by)
            return self._end(round_, "not promoted", str(error))
        confirmation = self._await_confirmation(round_, version, began) if self.config.canary is not None else None
        if confirmation is not None and confirmation["state"] == "refused":
            undo = {"only": version.number, "by": self.by, "reason": confirmation["message"], "key": f"{key}/back"}
            rollback(self.config.alias, model=version.model, root=self.root, **undo)
            return self._end(round_, "rolled back", confirmation["message"])
        message = f"{version.id} replaces {base.id} as {self.config.alias}"
        return self._end(round_, "promoted", f"{message}; {confirmation['message']}" if confirmation else message)

    def _canary(self, round_: Round, base: Version, version: Version) -> dict[str, Any]:
        assert self.config.canary is not None
        since = round_.once("canary_started", self.clock)
        key = f"{self.run.id}/{round_.number}/{CANDIDATE}"
        if "canary" not in round_.facts:
            promote(version.id, CANDIDATE, root=self.root, key=key, by=self.by, reason=f"round {round_.number} of {self.run.id}")
        while "canary" not in round_.facts:
            result = check_canary(self.config.canary, self.served, version, base, since=since, now=self.clock())
            if result is not None:
                round_.record("canary", asdict(result))
            else:
                self._pause(1.0)
        return dict(round_.facts["canary"])

    def _await_confirmation(self, round_: Round, version: Version, began: float) -> dict[str, Any]:
        assert self.config.canary is not None
        while "confirmation" not in round_.facts:
            result = check_promotion(self.served, version, began)
            if result is not None:
                round_.record("confirmation", asdict(result))
            elif self.clock() - began > 60 * self.config.canary.settle_minutes:
                message = f"{self.served.id} did not confirm the promotion within {self.config.canary.settle_minutes:g} minutes"
                round_.record("confirmation", {"state": "passed", "message": message})
            else:
                self._pause(1.0)
        return dict(round_.facts["confirmation"])

    # --- shared by the stages

    def _finish(self, round_: Round, step: Step) -> RunDir:
        run = self.steps.finish(round_.number, step)
        round_.once(f"step {step.name}", lambda: {"run": run.id, "ended": self.clock()})
        return run

    def _end(self, round_: Round, outcome: str, message: str) -> None:
        round_.once("ended", self.clock)
        round_.once("message", lambda: message)
        round_.once("outcome", lambda: outcome)  # last: this completes the round

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self.steps.wait()
        while time.monotonic() < deadline:
            self.steps.wait()

    def _training_data(self, round_: Round) -> str | None:
        """Return the prepared data set of the round's training run."""
        run = self.root / round_.facts["step train"]["run"]
        record = read_json(run / PREPARED)
        return os.path.normpath(Path(run) / str(record["path"])) if record else None

    def _version(self, name: str) -> Version:
        version = find_version(name, self.root)
        assert version is not None, name
        return version

    def _group(self) -> str:
        return str(self.run.record["config"]["wandb"].get("group") or self.run.id)


def _trained_until(previous: list[dict[str, Any]]) -> float | None:
    """Return the end of the feedback that the last promoted model was trained on; None if none was promoted yet."""
    promoted = [facts for facts in previous if facts.get("outcome") == "promoted"]
    return float(promoted[-1]["trigger"]["time"]) if promoted else None
