"""The view of a run that collects answers of a teacher."""

import shlex

from ropewalk.jobs.runs.show.view import RunView, short_path


class AnswersView(RunView):
    """The common view of a run, with the file of conversations."""

    def outputs(self) -> list[str]:
        return [str(self.run.record["config"]["output"])]

    def next_commands(self) -> list[tuple[str, str]]:
        data = shlex.quote(short_path(self.outputs()[0]))
        return [(f"ropewalk run finetune model.path=DIR data={data} steps=100", "train a model on the answers")]
