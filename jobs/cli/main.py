"""The `ropewalk` command. Only typer is imported at the top, so that --help is fast."""

import contextlib
import copy
import errno
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ropewalk.cluster.backends import trust
from ropewalk.jobs.cli import (
    chat,
    checkpoints,
    cost,
    dev,
    drift,
    explain,
    export,
    feedback,
    fetch,
    inspect,
    mcp,
    models,
    move,
    notify,
    queue,
    repro,
    run,
    runs,
    search,
    secret,
    shell,
    site,
    space,
    sweep,
    ui,
)
from ropewalk.jobs.cli.json_output import print_json
from ropewalk.jobs.cli.ssh.command import ClusterCommand, with_cluster

COMPLETION = "_ROPEWALK_COMPLETE"  # set by a shell that asks for completions
# errors of a file system that are a user's mistake: wrong path, no permission, no space
USER_ERRORS = {errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


OTHER_NAMES = {  # words that newcomers try, and the command to type
    **dict.fromkeys(("stop", "kill", "abort", "end", "terminate"), "cancel RUN"),
    **dict.fromkeys(("list", "ls", "status", "jobs", "queue", "runs"), "ps --all"),
    **dict.fromkeys(("delete", "remove", "del"), "rm RUN"),
    **dict.fromkeys(("start", "launch", "exec", "execute"), "run JOB"),
    **dict.fromkeys(("restart", "retry", "continue"), "resume RUN"),
    **dict.fromkeys(("info", "describe", "inspect", "get"), "show RUN"),
    **dict.fromkeys(("tail", "log", "output"), "logs -f RUN"),
    **dict.fromkeys(("debug", "diagnose", "explain"), "why RUN"),
    **dict.fromkeys(("generate", "sample", "prompt", "talk"), "chat RUN"),
    **dict.fromkeys(("clean", "cleanup", "prune", "du"), "gc"),
    **dict.fromkeys(("upload", "wandb"), "sync"),
    **dict.fromkeys(("register", "publish"), "promote RUN --to ALIAS"),
    **dict.fromkeys(("init", "demo", "example"), "quickstart"),
    **dict.fromkeys(("train", "pretraining"), "run pretrain"),
    **dict.fromkeys(("tokenize", "prepare"), "run preprocess"),
    **dict.fromkeys(("sft", "tune", "fine-tune"), "run finetune"),
    **dict.fromkeys(("dpo", "grpo", "rlhf"), "run align"),
    **dict.fromkeys(("eval", "test", "score", "benchmark"), "run evaluate"),
    **dict.fromkeys(("quantize", "gguf"), "run compress"),
    **dict.fromkeys(("deploy", "server"), "run serve"),
}


SUBMIT_OPTIONS = {"--detach": "", **{option: f", with {option}" for option in ("--after", "--each", "--at-once")}}


class Commands(TyperGroup):
    """The group of all commands, with a hint when a job's name is used as a command."""

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete the command's name, but nothing after a word that is not a command."""
        return [] if [*ctx._protected_args, *ctx.args] else super().shell_complete(ctx, incomplete)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that `args` name; suggest `run JOB` if they name a job."""
        if args and args[0] not in self.commands:
            from ropewalk.jobs.registry import JOBS

            if args[0] in OTHER_NAMES:
                ctx.fail(f"no command {args[0]!r}; `ropewalk {OTHER_NAMES[args[0]]}` may be what you want")
            if args[0] in JOBS:
                ctx.fail(f"{args[0]!r} is a job, not a command: `ropewalk run {args[0]} ...` starts one")
        options = [argument.partition("=")[0] for argument in args[1:]]
        if args[:1] == ["run"] and (option := next((each for each in options if each in SUBMIT_OPTIONS), None)):
            ctx.fail(f"`run` follows one run to its end; use `ropewalk submit`, which does not{SUBMIT_OPTIONS[option]}")
        if sum(option in {"-c", "--config"} for option in options) > 1:
            ctx.fail("--config is given twice; name one job file, and add the keys that differ as key=value")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands,
    help="Raw text to a trained language model, on a laptop, on Slurm or on Kubernetes. After `ropewalk --install-completion` "
    "the shell completes jobs, their keys, clusters and run ids.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from ropewalk.cluster.installed import installed_versions

        print("ropewalk", installed_versions(["ropewalk"])["ropewalk"] or "(not installed as a package)")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Take the options of the command itself."""
    fetch.report_fetches()
    if sys.stdin.isatty() and sys.stderr.isatty():
        trust.confirm = lambda question: typer.confirm(question, err=True)


OWN_HELP: dict[str, Any] = {"help_option_names": []}  # these commands handle --help themselves: after JOB it shows the job's keys

PANELS: dict[str, tuple[Callable[..., Any], ...]] = {
    "Run": (run.run, run.submit, run.check, run.resume, repro.repro, dev.dev, runs.scale, move.move, runs.cancel),
    "Queue": (queue.hold, queue.release, queue.priority),
    "Look": (runs.ps, runs.show, runs.logs, runs.why, runs.top, ui.ui, cost.cost, shell.shell, runs.wait),
    "Look inside": (inspect.stacks, inspect.profile, inspect.memory),
    "Data and models": (
        fetch.fetch,
        export.export,
        checkpoints.checkpoints,
        chat.chat,
        sweep.best,
        sweep.confirm,
        search.sweep,
        drift.compare,
        drift.drift,
        export.sync,
    ),
    "Registry": (models.models, models.promote, models.rollback, models.approve, feedback.trace),
    "Feedback": (feedback.feedback, feedback.review, feedback.forget),
    "Space": (space.rm, space.gc),
    "Machine": (
        site.quickstart,
        site.doctor,
        site.nodes,
        secret.secret,
        site.trust,
        notify.notify,
        mcp.mcp,
        site.lab,
        explain.help_,
    ),
}
SETTINGS: dict[object, dict[str, Any]] = {
    run.run: OWN_HELP,
    run.submit: OWN_HELP,
    site.lab: {**OWN_HELP, "ignore_unknown_options": True},
}
ON_THIS_MACHINE = frozenset({run.check, search.sweep, site.quickstart, site.trust, mcp.mcp, site.lab, ui.ui, explain.help_})
for _panel, _commands in PANELS.items():
    for _command in _commands:
        app.command(
            _command.__name__.rstrip("_"), rich_help_panel=_panel, context_settings=SETTINGS.get(_command), cls=ClusterCommand
        )(_command if _command in ON_THIS_MACHINE else with_cluster(_command))
app.command("cluster-step", hidden=True, cls=ClusterCommand)(move.cluster_step)


def main() -> None:
    """Run the command. A user's mistake is reported in one line with exit code 2, never as a traceback."""
    if COMPLETION in os.environ:  # looking for pydantic plug-ins takes longer than the completion itself
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    try:
        arguments, program = _split(sys.argv[1:])
        code = _app_with(arguments)(arguments or ["--help"], prog_name="ropewalk", standalone_mode=False, obj=program)
        sys.stdout.flush()  # so that a write error can still be reported
    except KeyboardInterrupt:
        from ropewalk.cluster.errors import EXIT_INTERRUPTED

        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader closed the pipe
        code = 0
    except SystemExit as leave:
        if not isinstance(leave.__context__, BrokenPipeError):  # rich turns BrokenPipeError into SystemExit
            raise
        code = 0
    except Exception as error:
        code = _explain(error)
    _flush_or_discard()
    sys.exit(code if isinstance(code, int) else 0)


def _app_with(arguments: list[str]) -> typer.Typer:
    """Return the application with the command that is called, or with all of them, which takes 50 ms to build."""
    called = [command for command in app.registered_commands if [command.name] == arguments[:1] != ["help"]]
    if not called:
        return app
    single = copy.copy(app)
    single.registered_commands = called
    return single


def _flush_or_discard() -> None:
    """Flush stdout; if that fails, discard the rest so that interpreter shutdown does not fail again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split the arguments at `--` into those of the command and those of the user's program."""
    if "--" not in arguments:
        return arguments, []
    index = arguments.index("--")
    return arguments[:index], arguments[index + 1 :]


def _explain(error: Exception) -> int:
    """Print a user's mistake or a failure in one line and return the exit code; raise any other error."""
    format_message = getattr(error, "format_message", None)
    if format_message is not None:  # typer's errors: a missing argument, an unknown option
        context = getattr(error, "ctx", None)
        usage = f"; see `{context.command_path} --help`" if context else ""
        from ropewalk.cluster.config_reader import plain_message

        return _mistake(plain_message(" ".join(format_message().split()).rstrip(".")) + _as_key(error) + usage)
    from ropewalk.cluster.errors import EXIT_FAILED, EXIT_USER_MISTAKE, ConfigError, DataError, RopewalkError

    if isinstance(error, OSError) and error.errno in USER_ERRORS:
        if not error.filename:
            if error.errno not in NO_SPACE:
                raise error
            remedy = "free some space, or write elsewhere"
            return _mistake(f"cannot write the output or a file: {error.strerror}; {remedy}", "OSError")
        reason = "not a directory" if error.errno in {errno.EEXIST, errno.ENOTDIR} else error.strerror
        return _mistake(f"{error.filename}: {reason}; check the path and its permissions", "OSError")
    if isinstance(error, ModuleNotFoundError):
        from ropewalk.cluster.installed import REMEDY, is_light

        if is_light() and not str(error.name).startswith("ropewalk"):
            return _mistake(f"this needs {error.name}, which is not installed: {REMEDY}", type(error).__name__)
    if not isinstance(error, RopewalkError):
        raise error
    is_mistake = isinstance(error, (ConfigError, DataError))
    return _mistake(" ".join(str(error).split()), type(error).__name__, EXIT_USER_MISTAKE if is_mistake else EXIT_FAILED)


def _as_key(error: Exception) -> str:
    """Return the override that stands for an unknown option of a command with keys, or an empty string."""
    option, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if (
        not option
        or not option.startswith("--")
        or context is None
        or not any(parameter.name == "overrides" for parameter in context.command.params)
    ):
        return ""
    index = next((index for index, argument in enumerate(sys.argv) if argument.partition("=")[0] == option), None)
    if index is None:
        return ""
    value = sys.argv[index].partition("=")[2] or " ".join(sys.argv[index + 1 : index + 2]) or "VALUE"
    return f"; keys have no dashes: write {option.lstrip('-').replace('-', '_')}={value}"


def _mistake(message: str, kind: str = "usage", exit_code: int = 2) -> int:
    """Print an error in one line, and with --json also as an object on stdout; return the exit code."""
    print(f"error: {message}", file=sys.stderr)
    if "--json" in _split(sys.argv[1:])[0]:
        with contextlib.suppress(OSError):
            print_json({"error": {"kind": kind, "message": message, "exit_code": exit_code}})
    return exit_code


if __name__ == "__main__":
    main()
