"""The `ropewalk` command. Only typer is imported on top: --help must answer at once."""

import errno
import gc
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ropewalk.jobs.cli import chat, drift, evaluations, export, feedback, models, run, runs, site, sweep, trace

COMPLETION = "_ROPEWALK_COMPLETE"  # set by a shell that asks what a word may become
# what a file system answers where a path is wrong, closed or full
ANSWERS = {errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class Commands(TyperGroup):
    """The group of all commands: no command is completed behind a word that is no command."""

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """What the word may become."""
        return [] if [*ctx._protected_args, *ctx.args] else super().shell_complete(ctx, incomplete)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that words name; a job is none, and its name stands behind `run`."""
        if args and args[0] not in self.commands:
            from ropewalk.jobs.registry import JOBS

            if args[0] in JOBS:
                ctx.fail(f"{args[0]!r} is a job, not a command: `ropewalk run {args[0]} ...` starts one")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands,
    help="Raw text to a trained language model, on a laptop, on Slurm or on Kubernetes. After `ropewalk --install-completion` "
    "the shell completes jobs, their keys, clusters and run ids.",
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


OWN_HELP: dict[str, Any] = {"help_option_names": []}  # --help is an option of the command itself: it shows a job's keys

PANELS = {
    "Run": (run.run, run.submit, run.resume, runs.scale, runs.cancel),
    "Look": (runs.ps, runs.show, runs.logs, runs.why, runs.top, runs.wait),
    "Data and models": (export.export, chat.chat, sweep.best, sweep.confirm, evaluations.compare, drift.drift, export.sync),
    "Registry": (models.models, models.promote, models.rollback, models.approve, trace.trace),
    "Feedback": (feedback.feedback, feedback.review),
    "Machine": (site.quickstart, site.doctor, site.lab),
}
SETTINGS: dict[object, dict[str, Any]] = {
    run.run: OWN_HELP,
    run.submit: OWN_HELP,
    site.lab: {**OWN_HELP, "ignore_unknown_options": True},
}
for _panel, _commands in PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel, context_settings=SETTINGS.get(_command))(_command)


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 2, never a traceback."""
    gc.set_threshold(100_000)  # what a command makes lives as long as it does: to look for cycles in it was a seventh of `ps`
    if COMPLETION in os.environ:  # to look for pydantic's plug-ins in every package takes longer than to answer
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    try:
        words, program = _split(sys.argv[1:])
        code = app(words or ["--help"], prog_name="ropewalk", standalone_mode=False, obj=program)
        sys.stdout.flush()  # while an error of it can still be told
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader has seen enough
        code = 0
    except SystemExit as leave:
        if not isinstance(leave.__context__, BrokenPipeError):  # else it is rich's word for the same
            raise
        code = 0
    except Exception as error:
        code = _explain(error)
    _flush_or_discard()
    sys.exit(code if isinstance(code, int) else 0)


def _flush_or_discard() -> None:
    """Write what is left of the output; what cannot be written any more must not fail once more when this process ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """The command's own words, and behind `--` those of a program of the user's."""
    if "--" not in words:
        return words, []
    place = words.index("--")
    return words[:place], words[place + 1 :]


def _explain(error: Exception) -> int:
    """Print a user's mistake or a failure as one line; its exit code. Raises whatever is neither."""
    format_message = getattr(error, "format_message", None)
    if format_message is not None:  # typer's own: a missing argument, an unknown option
        context = getattr(error, "ctx", None)
        usage = f"; see `{context.command_path} --help`" if context else ""
        return _mistake(" ".join(format_message().split()).rstrip(".") + usage)
    from ropewalk.cluster.errors import EXIT_FAILED, ConfigError, DataError, RopewalkError

    if isinstance(error, OSError) and error.errno in ANSWERS:
        if not error.filename:
            if error.errno not in FULL:
                raise error
            return _mistake(f"the output, or a file, cannot be written: {error.strerror}; free some space, or write elsewhere")
        said = "is no directory" if error.errno in {errno.EEXIST, errno.ENOTDIR} else error.strerror
        return _mistake(f"{error.filename}: {said}; check the path, and who may read and write there")
    if not isinstance(error, RopewalkError):
        raise error
    code = _mistake(" ".join(str(error).split()))
    return code if isinstance(error, (ConfigError, DataError)) else EXIT_FAILED


def _mistake(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
