"""Driver of a refresh: feedback, training, gate, canary, promotion, round after round. All state is in files."""

import os

import yaml

from ropewalk.cluster.backends.profiles import PROFILES_VARIABLE
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_atomically
from ropewalk.jobs.runs.submit.launcher import ask, launcher
from ropewalk.jobs.serving.refresh.config import DriftTrigger, RefreshConfig
from ropewalk.jobs.serving.refresh.loop import Loop
from ropewalk.jobs.serving.refresh.report import results_of, write_report
from ropewalk.jobs.serving.refresh.steps import Steps
from ropewalk.jobs.serving.refresh.trigger import DriftCheck, DriftReport, DriftState, RefreshTrigger
from ropewalk.jobs.training.loop.architecture.model_record import find_source_run

CLUSTERS = "clusters.yaml"  # in the run's directory: profile of the cluster for the driver and its steps


def main(context: JobContext) -> dict[str, object]:
    """Run all rounds and return their outcomes. Raises StopRequested, StepFailedError.

    A restarted driver continues where the killed one stopped: each step's run and each promotion is made only once.
    """
    config, run = context.config(RefreshConfig), context.run
    write_atomically(run.path / CLUSTERS, yaml.safe_dump(run.record["clusters"]))
    os.environ[PROFILES_VARIABLE] = str(run.path / CLUSTERS)
    served = find_source_run(run, config.watch, "watch")
    output = run.log_dir(context.attempt) / "launcher.log"
    # the steps outlive this process, and receive a stop directly
    with launcher(output, {PROFILES_VARIABLE: os.environ[PROFILES_VARIABLE]}, []) as socket:
        steps = Steps(context, lambda verb, step: ask(socket, verb, step))
        trigger = RefreshTrigger(config.trigger, served, drift_check(config.trigger.drift, served, config.seed))
        Loop(context, config, steps, trigger).drive(lambda: write_report(run))
    write_report(run)
    return results_of(run)


def drift_check(config: DriftTrigger | None, served: RunDir, seed: int) -> DriftCheck:
    """Return a function that checks the prompts of a serving run for drift, given the state of all earlier checks."""

    def check(state: DriftState) -> DriftReport:
        from ropewalk.jobs.serving.drift.config import DriftConfig
        from ropewalk.jobs.serving.drift.detect import detect
        from ropewalk.jobs.serving.drift.monitor import Monitor
        from ropewalk.jobs.serving.drift.sources import open_sample

        assert config is not None
        options = DriftConfig.model_validate({"seed": seed, **config.options})
        root, limit = served.path.parent, options.texts
        current = open_sample(f"{served.id}@{config.window}", limit=limit, seed=seed, root=root)
        reference = open_sample(config.reference, limit=limit, seed=seed, root=root)
        monitor = Monitor.of(state or None, alpha=options.alpha)
        drift = detect(current, reference, options, permutations=monitor.permutations)
        alarm = monitor.look(drift.p).alarm
        return DriftReport(alarm, drift.summary, monitor.plain(), drift.plain())

    return check
