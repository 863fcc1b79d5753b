"""Schema of what each command prints with `--json`."""

from typing import Any

from pydantic import TypeAdapter

from ropewalk.jobs.cli.answers import inspect, machine, models, runs, submission, sweeps
from ropewalk.jobs.cli.answers.base import Failure

ANSWERS: dict[str, Any] = {  # by command; with --dry-run and --script: a plan or a script
    "run": submission.RunResult | submission.Plan | submission.Script,
    "submit": submission.Submitted | submission.Plan | submission.Script,
    "check": submission.Checked,
    "resume": submission.RunResult | submission.Submitted,
    "repro": submission.Reproduction | submission.RunResult,
    "dev": submission.DevNode,
    "scale": runs.Scaled,
    "move": runs.Moved,
    "cancel": list[runs.Cancelled],
    **dict.fromkeys(("hold", "release"), list[runs.Queued]),
    "priority": runs.Queued,
    "ps": list[runs.TreeRow] | list[runs.RunRow],
    "show": runs.RunPage,
    "logs": runs.LogLine,
    "why": runs.Explanation,
    "cost": runs.CostPage,
    "top": runs.TopPage,
    "wait": submission.RunResult,
    "stacks": inspect.Stacks,
    "profile": inspect.Profile,
    "memory": inspect.Memory,
    "fetch": list[models.Fetched],
    "export": models.Exported,
    "checkpoints": models.Checkpoints,
    "chat": models.ChatTurn,
    "best": sweeps.Best,
    "confirm": sweeps.Confirmation,
    "sweep": sweeps.Simulation | sweeps.Asked | sweeps.Told | None,
    "compare": models.Comparison,
    "drift": models.Drift,
    "sync": models.Sent | models.SyncMessage,
    "models": list[models.RegisteredModel] | models.Version,
    "promote": models.Promoted,
    "rollback": models.Move,
    "approve": models.Approved,
    "trace": models.Trace,
    "feedback": models.Feedback,
    "forget": models.Forgotten,
    "rm": list[runs.Removed],
    "gc": runs.Garbage,
    "nodes": machine.Nodes,
    "doctor": machine.Health,
    "secret": machine.Secrets,
    "trust": machine.Trusted,
    "notify": list[machine.Notified],
    "help": machine.CommandHelp | machine.JobHelp | machine.MetricHelp | machine.Overview,
}
LINES = frozenset({"sweep", "submit", "logs", "top", "chat", "sync"})  # any number of lines; the others print one
NO_JSON = {  # they report nothing that a program could use
    "review": "opens a page for a person",
    "mcp": "speaks a protocol of its own",
    "ui": "opens a page for a person",
    "shell": "opens a terminal, or passes on the output of a command",
    "quickstart": "a tour for a person; its jobs can be run with `run --json`",
    "lab": "starts a test cluster; its own command has other options",
}


def schema_of(command: str) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a line that the command prints with `--json`, or of its failure."""
    return TypeAdapter(ANSWERS[command] | Failure).json_schema()


def validate(command: str, line: str) -> None:
    """Raise pydantic.ValidationError unless a line follows the schema of a command."""
    kind = Failure if line.startswith('{"error":') else ANSWERS[command]
    TypeAdapter(kind).validate_json(line)
