"""View of a run of the user's own program."""

from ropewalk.jobs.runs.show.view import RunView


class CommandView(RunView):
    """Shows the program's output while its run is followed."""

    shows_output = True
