"""The pipeline's own job, which runs after all steps and collects their results."""

from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.orchestration.pipeline.config import PipelineConfig
from ropewalk.jobs.orchestration.pipeline.runs import step_runs


def main(context: JobContext) -> dict[str, object]:
    """Return the results of every step by name, each with its run; it is called only if all steps have succeeded."""
    runs = step_runs(context.run, context.config(PipelineConfig))
    return {"steps": {name: {**run.results(), "run": run.id} for name, run in runs.items()}}
