"""Watch a serving run, and go round: feedback, training, gate, canary, production. Its state is in files."""

import os
from collections.abc import Mapping
from typing import Any

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
from ropewalk.jobs.serving.refresh.trigger import DriftLook, Trigger
from ropewalk.jobs.training.loop.model_record import find_source_run

CLUSTERS = "clusters.yaml"  # in the run: the cluster that the driver and its steps go by


def main(context: JobContext) -> dict[str, object]:
    """Go through all rounds; returns what became of them. Raises StopRequested, StepFailedError.

    A driver that was killed goes on where it was: each step is a run that is made once, each promotion is made once.
    """
    config, run = context.config(RefreshConfig), context.run
    write_atomically(run.path / CLUSTERS, yaml.safe_dump(run.record["clusters"]))
    os.environ[PROFILES_VARIABLE] = str(run.path / CLUSTERS)
    served = find_source_run(run, config.watch, "watch")
    output = run.log_dir(context.attempt) / "launcher.log"
    # the steps outlive this process, and hear of a stop by themselves
    with launcher(output, {PROFILES_VARIABLE: os.environ[PROFILES_VARIABLE]}, []) as place:
        steps = Steps(context, lambda verb, step: ask(place, verb, step))
        trigger = Trigger(config.trigger, served, drift_look(config.trigger.drift, served, config.seed))
        Loop(context, config, steps, trigger).drive(lambda: write_report(run))
    write_report(run)
    return results_of(run)


def drift_look(config: DriftTrigger | None, served: RunDir, seed: int) -> DriftLook:
    """A function that looks for drift of what a serving run is asked, with the state of all looks before."""

    def look(state: Mapping[str, Any]) -> dict[str, Any]:
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
        found = detect(current, reference, options, permutations=monitor.permutations)
        alarm = monitor.look(found.p).alarm
        return {"alarm": alarm, "words": found.summary, "state": monitor.plain(), "figures": found.plain()}

    return look
