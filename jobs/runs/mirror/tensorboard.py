"""TensorBoard: event files in the run directory, `tensorboard --logdir RUN/trackers`."""

import os

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.mirror.trackers import place_of


class TensorBoard:
    """Writes event files, one for each process: a file's name says the second, the machine and the process."""

    def __init__(self, run: RunDir) -> None:
        # not SummaryWriter: its queue outlives a `flush`, and dies with the process
        self._writer = EventsWriter(str(place_of(run, "tensorboard") / "events"), f".{os.getpid()}")

    def log(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """Write the scalars of a step."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.write_event(Event(wall_time=seconds, step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        """Hand everything that was logged to the file."""
        self._writer.flush()
