"""Run the user's program: one process per rank, per node, or in all."""

import os
from collections.abc import Mapping
from pathlib import Path

from ropewalk.cluster.errors import StopRequested
from ropewalk.cluster.process.kill import end, processes_with, variable_of
from ropewalk.cluster.process.sockets import prepare_sockets
from ropewalk.cluster.run.context import GROUP_VARIABLE, STOP_VARIABLE, JobContext
from ropewalk.cluster.run.files import write_json
from ropewalk.cluster.secrets.variables import RunSecrets
from ropewalk.jobs.orchestration.command.config import CommandConfig, fill_placeholders
from ropewalk.jobs.orchestration.command.program import Output, Program, Stops
from ropewalk.jobs.results.metrics import OWN_KEYS, latest_metrics
from ropewalk.jobs.runs.program.environment import project_folder, variables_of
from ropewalk.jobs.runs.program.verdict import judge, log_size, tail

PROGRAM_VARIABLES = (STOP_VARIABLE, GROUP_VARIABLE, "RANK")  # node, group and rank, inherited by all descendants


def main(context: JobContext) -> dict[str, object]:
    """Start the program, forward stop requests to it, and translate its exit code for the run's supervisor.

    Returns the results of a program that exited with 0. Raises StopRequested (exit after a stop, or with 85),
    ProgramRefusedError (42), LostPeerError (another rank was lost), ProgramFailedError (any other code).
    """
    config = context.config(CommandConfig)
    stops = Stops((context.stop_flag, context.regroup_flag), config.stop_signal)
    if stops.requested():
        raise StopRequested("asked to stop before the program was started")
    context.run.checkpoints.mkdir(exist_ok=True)
    secrets = RunSecrets.inherited()
    # lines of several ranks must not be mixed, and a log in which the agent masks secrets may still lack the last lines
    reads_output = context.shared_log or secrets.values or (config.metrics and context.rank == 0)
    output = Output(context, config) if reads_output else None
    if config.steps and context.rank == 0 and not context.run.progress.exists():
        write_json(context.run.progress, {"stage": "train", "done": 0, "total": config.steps, "unit": "steps"}, durable=False)
    since = log_size(context)
    if config.launch == "ranks":
        prepare_sockets(context.rank, context.world_size)
    environment = _environment(context, config)
    end_older_groups(context)
    folder = project_folder(context.run, config.directory)
    code = Program(_command_line(context, config), folder, environment, output).wait(stops)
    end(processes_with({name: environment[name] for name in PROGRAM_VARIABLES if name in environment}))
    if output is not None:
        output.close()
    judge(code, stops.sent, context, secrets.mask.text(output.tail()) if output is not None else tail(context, since))
    return {"exit_code": code, **(_latest(context) if context.rank == 0 else {})}


def end_older_groups(context: JobContext) -> None:
    """Kill processes of earlier groups on this node: those that a killed rank's program had started may survive it."""
    if context.group > 1:
        processes = processes_with({STOP_VARIABLE: str(context.stop_flag)})
        end(process for process in processes if int(variable_of(process, GROUP_VARIABLE) or context.group) < context.group)


def _command_line(context: JobContext, config: CommandConfig) -> list[str]:
    """Return the command with values filled in, wrapped in a shell that runs the `setup` lines first if there are any."""
    copies = {path: str(_fill(context, config, Path(path))) for path in config.fill}
    directory = Path(config.directory)
    command = [copies.get(str(directory / word), fill_placeholders(word, config.values)) for word in config.command]
    if not config.setup:
        return command
    lines = "\n".join(["set -e", *config.setup, "set +e", 'exec "$@"'])
    return ["bash", "-c", lines, "setup", *command]


def _fill(context: JobContext, config: CommandConfig, path: Path) -> Path:
    """Write this process's copy of a text file with values filled in, and return its path."""
    source = Path(project_folder(context.run, config.directory)) / os.path.relpath(path, config.directory)
    copy = context.run.attempt_dir(context.attempt) / "filled" / str(context.rank) / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(fill_placeholders(source.read_text(), config.values))
    return copy


def _environment(context: JobContext, config: CommandConfig) -> Mapping[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != STOP_VARIABLE}
    environment = {name: fill_placeholders(text, config.values) for name, text in config.environment.items()}
    return {**inherited, **environment, **variables_of(context, config.launch, config.stop_signal)}


def _latest(context: JobContext) -> dict[str, object]:
    """Return the last value of each metric that the program has logged."""
    metrics = latest_metrics(context.run)
    values = {key: value for key, value in metrics.items() if key not in OWN_KEYS}
    return {**({"step": metrics["step"]} if "step" in metrics else {}), **values}
