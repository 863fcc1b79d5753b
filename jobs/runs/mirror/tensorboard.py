"""Tracker for TensorBoard: event files in the run directory, for `tensorboard --logdir RUN/trackers`."""

import os

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.runs.mirror.trackers import tracker_folder


class TensorBoard:
    """Writes event files, one per process."""

    def __init__(self, run: RunDir) -> None:
        # not SummaryWriter: `flush` does not empty its queue, which is lost if the process is killed
        self._writer = EventsWriter(str(tracker_folder(run, "tensorboard") / "events"), f".{os.getpid()}")

    def log(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.write_event(Event(wall_time=seconds, step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        self._writer.flush()
