"""The view of a run that makes a data set."""

import shlex
from pathlib import Path

from ropewalk.jobs.runs.show.view import RunView, short_path


class PreprocessView(RunView):
    """The common view of a run, with the data set and its report."""

    @property
    def folder(self) -> str:
        return str(self.run.record["config"]["output"])

    def outputs(self) -> list[str]:
        if "://" not in self.folder and not Path(self.folder, "manifest.json").exists():
            return []  # unfinished
        return [self.folder, f"{self.folder}/report/report.html", f"{self.folder}/report/data-card.md"]

    def next_commands(self) -> list[tuple[str, str]]:
        data = shlex.quote(short_path(self.folder))
        return [(f"ropewalk run pretrain data={data} model.preset=tiny steps=300", "train a model on it")]
