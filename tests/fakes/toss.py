"""A job of a tenth of a second, without torch: its metric depends on one key and on the seed."""

import random
import time

from pydantic import Field

from ropewalk.cluster.config import JobConfig
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.spec import Engine, JobSpec
from ropewalk.jobs.results.metrics import MetricLog


class TossConfig(JobConfig):
    """The keys of the job."""

    steps: int = Field(default=3, ge=1, description="lines of metrics")
    height: float = Field(default=0.0, description="the metric, but for the seed's noise")
    noise: float = Field(default=0.01, description="standard deviation of the noise")


def main(context: JobContext) -> dict[str, object]:
    config = context.config(TossConfig)
    log, luck = MetricLog(context), random.Random(f"{config.seed} {config.height}").gauss(0, config.noise)
    for step in range(1, config.steps + 1):
        log.log(step, {"toss/height": config.height + luck + 1 / step})
        time.sleep(0.01)
    return {"height": config.height + luck}


SPEC = JobSpec(
    name="toss", summary="Toss.", config="tests.fakes.toss:TossConfig", entry="tests.fakes.toss:main", engine=Engine.PROCESS
)
