"""Exit codes and the tree of errors.

RopewalkError                  an error that a person can act on: the message names object, value and remedy
├── ConfigError                invalid key, value or file of a configuration           CLI exits 2, a rank 42
│   ├── UnknownBackendError    a cluster profile names a backend that is not installed; also a BackendError
│   └── DamagedFileError       a file of a run directory cannot be parsed
├── DataError                  invalid input or data set                               CLI exits 2, a rank 42
│   └── CorruptShardError      a shard does not match its checksum
├── CheckpointError            a checkpoint is missing, incomplete, or of another model
│   └── DamagedCheckpointError a checkpoint does not match its checksums, and no older one can be loaded instead
├── GateError                  a score does not meet `require`; carries the results    CLI exits 1, a rank 42
├── NumericsError              the loss became NaN or jumped, and the policy is to stop
├── CorruptionError            the state of a training changes silently, again and again
├── BackendError               a scheduler refused, failed or does not answer          CLI exits 1
│   ├── AlreadyRunningError    an earlier submission of the run is still active
│   ├── SchedulerAwayError     a scheduler does not answer; the request may or may not have been carried out
│   ├── SubmissionInDoubtError a scheduler did not answer for the whole retry budget: the job may or may not exist
│   ├── CommandMissingError    a scheduler's command is not installed on this machine
│   └── NotReadyError          a service of the node did not start in time; counts as a disturbance    agent exits 143
├── StorageError               a file system did not answer for the whole retry budget
├── FormAnewError              the ranks must form a new group, which continues with other settings    a rank 75
├── GroupBrokenError           the group has ended, since another rank is gone; this rank may stay for the next one    75
└── StaleAttemptError          the process belongs to an attempt that has a successor; it must not write
StopRequested                  not an error: the state is saved, exit with code 85
"""

from typing import Any

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER_MISTAKE = 2
EXIT_NEVER_RETRY = 42
EXIT_LOST_PEER = 75  # EX_TEMPFAIL of sysexits.h
EXIT_REQUEUE = 85
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

EXIT_CODES = {  # of commands, and of ranks and users' programs
    EXIT_DONE: ("done", "done"),
    EXIT_FAILED: ("the run failed, or was refused by its gate", "failed; retried up to `retries.bugs` times"),
    EXIT_USER_MISTAKE: ("a mistake in the command line, a key or a file", "failed, as 1"),
    EXIT_NEVER_RETRY: ("", "a mistake of the user's, or a gate that refuses: never retried"),
    EXIT_LOST_PEER: ("", "a collective failed because another rank is gone"),
    EXIT_REQUEUE: ("", "saved; the run is requeued"),
    EXIT_INTERRUPTED: ("Ctrl-C; a run that was followed keeps running", ""),
    EXIT_TERMINATED: ("", "stopped before a checkpoint was confirmed"),
}


class RopewalkError(Exception):
    """An error that a person can act on.

    `retryable`: another attempt may succeed without a change. `logs_traceback`: the cause is in this program, not in the user's.
    """

    retryable = False
    logs_traceback = True


class ConfigError(RopewalkError):
    """Invalid key, value or file of a job's configuration."""


class DamagedFileError(ConfigError, ValueError):
    """A file of a run directory cannot be parsed; the message names it."""

    retryable = True  # the file system may return the right content later


class DataError(RopewalkError):
    """Invalid input or data set."""


class CorruptShardError(DataError):
    """A shard does not match the checksum in its manifest."""


class CheckpointError(RopewalkError):
    """A checkpoint is missing, incomplete, damaged, or belongs to another model."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint does not match its checksums, and no older one can be loaded instead."""


class GateError(RopewalkError):
    """A score does not meet the run's `require`. `results`: the results of the job, which is otherwise complete."""

    def __init__(self, message: str, results: dict[str, Any]) -> None:
        self.results = results
        super().__init__(message)


class NumericsError(RopewalkError):
    """The loss became NaN or jumped, and the configured policy is to stop."""


class CorruptionError(RopewalkError):
    """The state of a training changes silently, again and again."""

    retryable = True


class BackendError(RopewalkError):
    """A scheduler refused a request, failed, or does not answer."""

    retryable = True


class AlreadyRunningError(BackendError):
    """An earlier submission of the run is still active."""

    def __init__(self, run: str, active: str) -> None:
        """`active`: a phrase for the earlier submission, such as `an active Job (k8s:team/x)`."""
        self.active = active
        super().__init__(f"{run} already has {active}; cancel it first: ropewalk cancel {run}")


class SchedulerAwayError(BackendError):
    """A scheduler does not answer; the request may or may not have been carried out."""


class SubmissionInDoubtError(BackendError):
    """A scheduler did not answer for the whole retry budget of a submission: the job may or may not exist."""


class UnknownBackendError(ConfigError, BackendError):
    """A cluster's profile names a backend that is not installed."""

    retryable = False


class CommandMissingError(BackendError):
    """A scheduler's command is not installed on this machine."""


class NotReadyError(BackendError):
    """A service that the node starts before the program was not ready in time: a disturbance, not a bug of the program."""


class StorageError(RopewalkError):
    """A file system did not answer for longer than the retry budget."""

    retryable = True


class FormAnewError(RopewalkError):
    """The ranks must form a new group, which continues from the last checkpoint with other settings."""

    retryable = True


class GroupBrokenError(RopewalkError):
    """The group of this rank has ended, since another rank is gone."""

    logs_traceback = False


class StaleAttemptError(RopewalkError):
    """The process belongs to an attempt or group that has a successor: it must not write."""


class StopRequested(Exception):  # noqa: N818 - not an error: the run asked to be requeued
    """The ranks agreed to stop and all state is saved; the agent exits 85 and the run is requeued."""
