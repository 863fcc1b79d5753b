"""Arguments of commands that name a job: the job, its overrides, and the program after two dashes."""

import json
from pathlib import Path

import typer


def job_of(
    job: str | None, overrides: list[str] | None, config: Path | None, command: str = "run"
) -> tuple[str | None, list[str] | None]:
    """Return the job and the overrides of a command line; a job that is not typed is the one that the job file names."""
    if config is None or (job is not None and "=" not in job):
        return job, overrides
    from ropewalk.jobs.runs.submit.submit import job_named_by

    return job_named_by(config, command), [*([job] if job else []), *(overrides or [])]


def with_program(context: typer.Context, job: str, overrides: list[str] | None, config: Path | None) -> list[str]:
    """Return the overrides, with the program after `--` as the key `command`. Raises ConfigError for other jobs."""
    from ropewalk.cluster.errors import ConfigError

    pairs, program = overrides or [], context.obj or []
    if program and job != "command":
        raise ConfigError(
            f"-- {program[0]}: only the job `command` runs a program; write: {context.info_name} command --"
            f" {' '.join(program[:3])}"
        )
    if job == "command" and not program and config is None and not any(pair.startswith("command=") for pair in pairs):
        raise ConfigError("no program given; write it after two dashes: run command -- python train.py")
    return [*pairs, *([f"command={json.dumps(program)}"] if program else [])]
