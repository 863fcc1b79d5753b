"""Changes of a waiting run's place in its queue."""

from ropewalk.cluster.backends.profiles import backend_of
from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.show.status import final_outcome


def hold_run(run: RunDir) -> None:
    """Keep a run from starting. Raises ConfigError if it does not wait, or its cluster cannot do so."""
    _refuse_ended(run)
    backend_of(run).hold(run)


def release_run(run: RunDir) -> None:
    """Let a held run start. Raises ConfigError."""
    _refuse_ended(run)
    backend_of(run).release(run)


def lower_priority(run: RunDir, amount: int) -> None:
    """Lower a waiting run's priority by an amount. Raises ConfigError."""
    _refuse_ended(run)
    try:
        backend_of(run).lower_priority(run, amount)
    except BackendError as error:
        raise ConfigError(f"{run.id}: {error}; users can only lower the priority of their runs") from None


def _refuse_ended(run: RunDir) -> None:
    if (outcome := final_outcome(run)) is not None:
        raise ConfigError(f"{run.id} has ended: {outcome.state}")
