"""The view of a run that trains a model."""

import shlex
from typing import Any

from ropewalk.jobs.runs.show.view import RunView, short_path


class TrainingView(RunView):
    """The common view of a run, with the commands that use a trained model."""

    trains = True

    def plan(self, config: Any) -> list[tuple[str, str]]:
        """Return the parameters, the samples of a step and of all steps, accumulation, and the size of checkpoints."""
        from ropewalk.jobs.training.loop.forecast.plan import training_plan

        return training_plan(config)

    def outputs(self) -> list[str]:
        return [str(self.run.path / name) for name in ("samples.html", "pictures")]

    def next_commands(self) -> list[tuple[str, str]]:
        run = self.run.id
        return [
            (f"ropewalk chat {run}", "talk to the model"),
            (f"ropewalk run evaluate model={run} {self.evaluated()}", "score it"),
            (f"ropewalk export {run} model/", "write a Hugging Face directory"),
            (f"ropewalk show {run} --plot", "draw the curves"),
        ]

    def evaluated(self) -> str:
        """Return the key of `evaluate` that names the text or tasks to score."""
        return "tasks=[TASK]"


class TokensView(TrainingView):
    """The view of a run that trains on tokens, whose held-out split can be scored."""

    def evaluated(self) -> str:
        data = self.run.record["config"].get("data")
        return f"data={shlex.quote(short_path(data))}" if isinstance(data, str) else "data=DATA"
