"""TensorBoard: event files in the run directory, `tensorboard --logdir RUN/trackers`."""

from tensorboardX import SummaryWriter

from cluster.run.directory import RunDir
from jobs.mirror.trackers import place_of


class TensorBoard:
    """Writes event files."""

    def __init__(self, run: RunDir) -> None:
        self._writer = SummaryWriter(str(place_of(run, "tensorboard")), flush_secs=2)

    def log(self, step: int, metrics: dict[str, float], seconds: float) -> None:
        """Write the scalars of a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step, walltime=seconds)

    def flush(self) -> None:
        """Write the files."""
        self._writer.flush()
