"""A search for a loop of one's own: the next parameters and the results of earlier ones, kept in a file of JSON lines."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.files import append_line, locked
from ropewalk.jobs.orchestration.sweep.search.plan import SearchPlan
from ropewalk.jobs.orchestration.sweep.search.searches import Search, parameters_of


class Result(BaseModel):
    """A line given to `tell`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trial: int
    step: int = 1
    value: float | None = None  # of the metric; None: no value
    state: Literal["running", "complete", "stopped", "failed"] = "complete"


class AskTell:
    """The search of a sweep whose trials are run by someone else. All changes are in the file before they are answered."""

    def __init__(self, plan: SearchPlan, num_trials: int, file: Path) -> None:
        self.plan, self.num_trials, self.file = plan, num_trials, file

    def ask(self) -> dict[str, Any] | None:
        """Return the next trial and its parameters, or None if all were asked for."""
        with locked(self.file.with_name(f"{self.file.name}.lock")):
            search, count, _ = self._replay()
            sampled = search.suggest(count) if count < self.num_trials else None
            if sampled is None:
                return None
            append_line(self.file, {"trial": count, "sampled": sampled})
        return {"trial": count, "parameters": parameters_of(self.plan.space, sampled)}

    def tell(self, values: Mapping[str, Any]) -> Result:
        """Record a result. Raises ConfigError for a trial that was never asked for, or that has ended."""
        try:
            result = Result.model_validate(values)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise ConfigError(f"tell: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from None
        with locked(self.file.with_name(f"{self.file.name}.lock")):
            _, count, ended = self._replay()
            if not 0 <= result.trial < count:
                raise ConfigError(f"tell: trial {result.trial} was never asked for; {count} were")
            if result.trial in ended:
                raise ConfigError(f"tell: trial {result.trial} has ended")
            append_line(self.file, result.model_dump())
        return result

    def _replay(self) -> tuple[Search, int, set[int]]:
        """Return the search after all lines of the file, the number of trials, and those that ended."""
        search, count, ended = Search(self.plan), 0, set[int]()
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        for line in map(json.loads, lines):
            if "sampled" in line:
                search.suggest(line["trial"], line["sampled"])
                count += 1
                continue
            result = Result.model_validate(line)
            if result.value is not None and math.isfinite(result.value):
                search.report(result.trial, result.step, result.value)
            if result.state != "running":
                ended.add(result.trial)
                search.finish(result.trial, complete=result.state == "complete", failed=result.state == "failed")
        return search, count, ended
