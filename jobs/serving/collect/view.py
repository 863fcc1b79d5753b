"""The view of a run that makes training data from feedback."""

import shlex

from ropewalk.jobs.runs.show.view import RunView, short_path
from ropewalk.jobs.serving.collect.files import CONVERSATIONS, PAIRS


class CollectView(RunView):
    """The common view of a run, with its conversations and pairs."""

    def outputs(self) -> list[str]:
        return [str(self.run.path / name) for name in (CONVERSATIONS, PAIRS)]

    def next_commands(self) -> list[tuple[str, str]]:
        chats, pairs = (shlex.quote(short_path(path)) for path in self.outputs())
        return [
            (f"ropewalk run finetune model.path=DIR data={chats} steps=100", "train a model on the conversations"),
            (f"ropewalk run align model.path=DIR data={pairs} steps=100", "align a model with the preferences"),
        ]
