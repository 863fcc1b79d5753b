"""What a trial's run reports, read from its metrics file as it grows."""

from cluster.run.directory import RunDir
from jobs.tracking.metrics import read_new_lines


class Readings:
    """The values of one metric: each step once, ascending, whatever attempts did again."""

    def __init__(self, run: RunDir, metric: str, after: int = 0) -> None:
        self.run, self.metric, self.last_step = run, metric, after
        self._offset = 0
        self.names: set[str] = set()  # all metrics that were seen, for a trial that never reports the right one

    def news(self) -> list[tuple[int, float]]:
        """(step, value) of the lines that are new and carry the metric as a number."""
        lines, self._offset = read_new_lines(self.run.metrics, self._offset)
        found = []
        for line in lines:
            self.names.update(line)
            value, step = line.get(self.metric), line.get("step")
            if isinstance(value, (int, float)) and isinstance(step, int) and step > self.last_step:
                self.last_step = step
                found.append((step, float(value)))
        return found


class Pace:
    """Which readings a scheduler wants: the first at or behind each multiple of its steps. None: only the last."""

    def __init__(self, every_steps: int | None, after: int = 0) -> None:
        self._every, self._passed = every_steps, after

    def due(self, step: int) -> bool:
        """Whether this reading is reported; asked once for each, ascending."""
        if self._every is None or step // self._every <= self._passed // self._every:
            return False
        self._passed = step
        return True
