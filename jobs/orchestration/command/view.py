"""View of a run of the user's own program."""

from ropewalk.cluster.config import Resources
from ropewalk.jobs.runs.show.view import RunView


class CommandView(RunView):
    """Shows the program's output while its run is followed."""

    shows_output = True

    def processes_per_node(self, resources: Resources) -> int:
        return super().processes_per_node(resources) if self.run.record["config"]["launch"] == "ranks" else 1
