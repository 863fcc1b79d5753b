"""A review session of a run: the server, the source of second answers, and the files written at the end."""

import getpass
import os
import signal
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.local_access import LOOPBACK
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.text import counted
from ropewalk.jobs.inference.scoring.reach import reach
from ropewalk.jobs.runs.show.status import find_run
from ropewalk.jobs.runs.show.view import view_of
from ropewalk.jobs.serving.feedback.config import CaptureConfig
from ropewalk.jobs.serving.feedback.masking import mask
from ropewalk.jobs.serving.feedback.records import FOLDER
from ropewalk.jobs.serving.feedback.review.export import CHATS, PAIRS, reviewed_conversations, reviewed_pairs
from ropewalk.jobs.serving.feedback.review.page import describe_agreement
from ropewalk.jobs.serving.feedback.review.samples import AskEndpoint, Sampler, endpoint
from ropewalk.jobs.serving.feedback.review.server import ReviewServer
from ropewalk.jobs.serving.feedback.review.session import Review
from ropewalk.jobs.serving.feedback.training_data import write_records

TOKEN_VARIABLE = "ROPEWALK_ENDPOINT_TOKEN"  # noqa: S105 - its name


class OpenReview:
    """A running review."""

    def __init__(self, review: Review, folder: Path, port: int) -> None:
        """Raise ConfigError if the port is in use."""
        self.review, self.folder = review, folder
        self.results: list[str] = []  # summary lines: files written, agreement of reviewers
        try:
            self.server = ReviewServer(review, self.write_files, port)
        except OSError as error:
            raise ConfigError(f"port {port} of {LOOPBACK}: {error.strerror}; --port 0 takes a free one") from error

    @property
    def status(self) -> str:
        judged, total, _ = self.review.progress()
        return f"{self.review.run.id}: {counted(total - judged, 'item')} to judge for {self.review.reviewer}, {judged} judged"

    def serve(self, on_line: Callable[[], None] | None = None) -> None:
        """Serve until Ctrl-C or SIGTERM; call `on_line` for each line of standard input."""
        if on_line:
            threading.Thread(target=_each_line, args=(on_line,), daemon=True).start()
        with suppress(KeyboardInterrupt):
            self.server.serve_forever(poll_interval=0.2)

    def write_files(self) -> list[str]:
        """Write training data from the judgements so far; return the files that have records."""
        written = []
        self.results.clear()
        for name, data in ((PAIRS, reviewed_pairs(self.review.run)), (CHATS, reviewed_conversations(self.review.run))):
            if data.records:
                write_records(self.folder / name, data.records)
                written.append(str(self.folder / name))
            reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in data.left_out.items())
            left_out = f"; left out: {reasons}" if reasons else ""
            self.results.append(f"{counted(len(data.records), 'record')} → {self.folder / name}{left_out}")
        return written


@contextmanager
def open_review(
    run: str, *, reviewer: str | None, ask_at: str | None, sample: bool, out: Path | None, port: int
) -> Iterator[OpenReview]:
    """Open a run's review for one reviewer. Raises ConfigError if the run captured nothing, or if the port is in use."""
    run_dir = find_run(run)
    if not (run_dir.path / FOLDER / "exchanges").is_dir():
        raise ConfigError(
            f"{run_dir.id} has captured no exchanges: serve with capture={{share: 1.0}}, and send it requests first"
        )
    capture = (run_dir.record.get("config") or {}).get("capture")
    kinds = CaptureConfig.model_validate(capture or {}).mask
    name = (reviewer or getpass.getuser()).strip()
    mask(["once"], kinds)  # load compiled kernels before the first page is requested
    with _asking(run_dir, ask_at) if sample else nullcontext() as ask:
        sampler = Sampler(run_dir.path, ask, kinds) if ask else None
        review = Review(run_dir, name, kinds, sampler)
        try:
            opened = OpenReview(review, out or run_dir.path / FOLDER / "review", port)
        except ConfigError:
            review.close()
            raise
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            with suppress(KeyboardInterrupt):  # Ctrl-C can come before the first request
                yield opened
        finally:
            signal.signal(signal.SIGTERM, before)
            opened.server.server_close()
            review.close()
            opened.write_files()
            opened.results += [describe_agreement(agreement) for agreement in review.agreements()]


@contextmanager
def _asking(run: RunDir, address: str | None) -> Iterator[AskEndpoint | None]:
    """Yield a function that asks this address, or else the serving run; None if the run is not serving now.

    Raises BackendError if the run cannot be reached from this machine.
    """
    if address:
        yield endpoint(address, os.environ.get(TOKEN_VARIABLE))
    elif (serving := view_of(run).endpoint()) is None:
        yield None
    else:
        token = serving.token()
        with reach(serving) as here:
            verify = serving.verify()
            yield endpoint(here, token, verify if isinstance(verify, ssl.SSLContext) else None)


def _each_line(on_line: Callable[[], None]) -> None:
    for _ in sys.stdin:
        on_line()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
