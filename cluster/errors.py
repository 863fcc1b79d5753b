"""The one tree of errors.

RopewalkError                  a person can act on it: the message names the thing, the value, the remedy
├── ConfigError                a key, value or file of the job's configuration         CLI exits 2, a rank 42
│   ├── UnknownBackendError    a cluster's profile names a backend that is not installed; a BackendError too
│   └── DamagedFileError       a file of a run's directory cannot be read back
├── DataError                  an input or a data set is not what it should be         CLI exits 2, a rank 42
│   └── CorruptShardError      a shard does not match its checksum
├── CheckpointError            a checkpoint is missing, cut short, or of another model
├── GateError                  a score misses what `require` asks; it has the results     CLI exits 1, a rank 42
├── NumericsError              the loss became NaN or jumped, and the policy says stop
├── BackendError               a scheduler refused, failed or does not answer          CLI exits 1
│   ├── AlreadyRunningError    an earlier submission of the run is still under way
│   ├── SchedulerAwayError     a scheduler does not answer; what was asked may or may not have been done
│   ├── SubmissionInDoubtError a scheduler stayed away for longer than the patience: the job may exist or not
│   ├── CommandMissingError    a scheduler's command is not installed on this machine
│   └── NotReadyError          what a node has to start was not there in time; counted as a disturbance      an agent 143
├── StorageError               a file system stayed away for longer than the patience
└── StaleAttemptError          this process belongs to an attempt that has a successor; it must not write
StopRequested                  not an error: the state is saved, leave with exit code 85
"""

from typing import Any

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER_MISTAKE = 2
EXIT_NEVER_RETRY = 42
EXIT_LOST_PEER = 75  # a collective broke because another rank is gone: not this rank's fault (sysexits' TEMPFAIL)
EXIT_REQUEUE = 85
EXIT_TERMINATED = 143  # stopped, and no checkpoint was confirmed in time


class RopewalkError(Exception):
    """An error that a person can act on; `retryable` says whether another attempt may mend it by itself."""

    retryable = False


class ConfigError(RopewalkError):
    """A key, a value or a file of the job's configuration."""


class DamagedFileError(ConfigError, ValueError):
    """A file of a run's directory cannot be read back: the message names it."""

    retryable = True  # the disk may come back with what was written


class DataError(RopewalkError):
    """An input or a data set is not what it should be."""


class CorruptShardError(DataError):
    """A shard does not match the checksum in its manifest."""


class CheckpointError(RopewalkError):
    """A checkpoint is missing, cut short, damaged, or belongs to another model."""


class GateError(RopewalkError):
    """A score misses what the run's `require` asks. `results` are the job's, which is done for the rest."""

    def __init__(self, message: str, results: dict[str, Any]) -> None:
        self.results = results
        super().__init__(message)


class NumericsError(RopewalkError):
    """The loss became NaN or jumped, and the configured policy is to stop."""


class BackendError(RopewalkError):
    """A scheduler refused a request, failed, or does not answer."""

    retryable = True


class AlreadyRunningError(BackendError):
    """An earlier submission of the run is still under way: a second one would be one too many."""

    def __init__(self, run: str, active: str) -> None:
        """`active` says what of it is under way, such as `an active Job (k8s:team/x)`."""
        self.active = active
        super().__init__(f"{run} already has {active}; cancel it first: ropewalk cancel {run}")


class SchedulerAwayError(BackendError):
    """A scheduler does not answer; what was asked may or may not have been done."""


class SubmissionInDoubtError(BackendError):
    """A scheduler stayed away for longer than the patience of a submission: the job may exist or not."""


class UnknownBackendError(ConfigError, BackendError):
    """A cluster's profile names a backend that is not installed."""

    retryable = False


class CommandMissingError(BackendError):
    """A scheduler's command is not installed on this machine."""


class NotReadyError(BackendError):
    """What a node has to start before the program was not there in time: a disturbance, and no bug of the program."""


class StorageError(RopewalkError):
    """A file system did not answer for longer than the retry budget."""

    retryable = True


class StaleAttemptError(RopewalkError):
    """This process belongs to an attempt or group that has a successor: it must not write."""


class StopRequested(Exception):  # noqa: N818 - not an error: the run asked to be requeued
    """All state is saved after an agreed stop; the agent exits 85 and the run is requeued."""
