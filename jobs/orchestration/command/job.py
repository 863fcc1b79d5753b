"""Run the user's program as one process of the run: one a rank, one a node, or one in all."""

import os
from collections.abc import Mapping
from pathlib import Path

from ropewalk.cluster.errors import StopRequested
from ropewalk.cluster.process.kill import end, processes_with, variable_of
from ropewalk.cluster.run.context import GROUP_VARIABLE, STOP_VARIABLE, JobContext
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.orchestration.command.config import CommandConfig, filled
from ropewalk.jobs.orchestration.command.program import Output, Program, Stops
from ropewalk.jobs.results.metrics import OWN_KEYS, latest_metrics
from ropewalk.jobs.runs.program.environment import project_folder, variables_of
from ropewalk.jobs.runs.program.verdict import judge, said_so_far

OF_ONE_PROGRAM = (STOP_VARIABLE, GROUP_VARIABLE, "RANK")  # the node, the group, the process: what all its descendants inherit


def main(context: JobContext) -> dict[str, object]:
    """Start the program, carry stops to it, and make of its end what the run's supervisor understands.

    Returns the results of a program that ended with 0. Raises StopRequested (it left after a stop, or with 85),
    ProgramRefusedError (42), LostPeerError (another rank was gone), ProgramFailedError (anything else).
    """
    config = context.config(CommandConfig)
    stops = Stops((context.stop_flag, context.regroup_flag), config.stop_signal)
    if stops.asked():
        raise StopRequested("a stop came before the program was started")
    context.run.checkpoints.mkdir(exist_ok=True)
    output = Output(context, config) if config.metrics and context.rank == 0 else None
    if config.steps and context.rank == 0 and not context.run.progress.exists():
        write_json(context.run.progress, {"stage": "train", "done": 0, "total": config.steps, "unit": "steps"}, durable=False)
    since = said_so_far(context)
    environment = _environment(context, config)
    end_older_groups(context)
    folder = project_folder(context.run, config.directory)
    code = Program(_words(context, config), folder, environment, output).wait(stops)
    end(processes_with({name: environment[name] for name in OF_ONE_PROGRAM if name in environment}))
    if output is not None:
        output.close()
    judge(code, stops.sent, context, since)
    return {"exit_code": code, **(_latest(context) if context.rank == 0 else {})}


def end_older_groups(context: JobContext) -> None:
    """End what programs of earlier groups have left running on this node: a rank's own process may have been killed, and the
    last processes of a shell's pipeline do not die with it.
    """
    if context.group > 1:
        here = processes_with({STOP_VARIABLE: str(context.stop_flag)})
        end(process for process in here if int(variable_of(process, GROUP_VARIABLE) or context.group) < context.group)


def _words(context: JobContext, config: CommandConfig) -> list[str]:
    """The command with its values, after the lines of set-up in the same shell where there are any."""
    copies = {path: str(_fill(context, config, Path(path))) for path in config.fill}
    here = Path(config.directory)
    command = [copies.get(str(here / word), filled(word, config.values)) for word in config.command]
    if not config.setup:
        return command
    lines = "\n".join(["set -e", *config.setup, "set +e", 'exec "$@"'])
    return ["bash", "-c", lines, "setup", *command]


def _fill(context: JobContext, config: CommandConfig, path: Path) -> Path:
    """The copy of a text file in which the values stand for their names; each process writes its own."""
    own = Path(project_folder(context.run, config.directory)) / os.path.relpath(path, config.directory)
    copy = context.run.attempt_dir(context.attempt) / "filled" / str(context.rank) / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(filled(own.read_text(), config.values))
    return copy


def _environment(context: JobContext, config: CommandConfig) -> Mapping[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != STOP_VARIABLE}
    environment = {name: filled(text, config.values) for name, text in config.environment.items()}
    return {**inherited, **environment, **variables_of(context, config.launch, config.stop_signal)}


def _latest(context: JobContext) -> dict[str, object]:
    """The last value of each metric that the program has logged."""
    found = latest_metrics(context.run)
    kept = {key: value for key, value in found.items() if key not in OWN_KEYS}
    return {**({"step": found["step"]} if "step" in found else {}), **kept}
