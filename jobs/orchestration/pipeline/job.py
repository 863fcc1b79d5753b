"""The pipeline's own job, which comes after all steps: it gathers what they have found."""

from ropewalk.cluster.run.context import JobContext
from ropewalk.jobs.orchestration.pipeline.config import PipelineConfig
from ropewalk.jobs.orchestration.pipeline.runs import step_runs


def main(context: JobContext) -> dict[str, object]:
    """Return the results of every step by its name, each with its run. All have succeeded, or this would not be called."""
    runs = step_runs(context.run, context.config(PipelineConfig))
    return {"steps": {name: {**run.results(), "run": run.id} for name, run in runs.items()}}
