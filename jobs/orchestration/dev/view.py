"""View of a run that holds a node for sessions."""

from ropewalk.jobs.runs.show.view import RunView


class DevView(RunView):
    """Says what cancelling a run of `dev` does: it has nothing to save."""

    on_cancel = "ends its sessions"
