"""Open a run's review: the server, where second answers come from, and the files that are made at its end."""

import getpass
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.text import counted
from ropewalk.jobs.runs.show.status import find_run
from ropewalk.jobs.runs.show.view import view_of
from ropewalk.jobs.serving.feedback.config import CaptureConfig
from ropewalk.jobs.serving.feedback.masking import mask
from ropewalk.jobs.serving.feedback.records import FOLDER
from ropewalk.jobs.serving.feedback.review.export import CHATS, PAIRS, reviewed_conversations, reviewed_pairs
from ropewalk.jobs.serving.feedback.review.page import agreement_words
from ropewalk.jobs.serving.feedback.review.samples import Ask, Sampler, endpoint
from ropewalk.jobs.serving.feedback.review.server import LOOPBACK, ReviewServer
from ropewalk.jobs.serving.feedback.review.session import Review
from ropewalk.jobs.serving.feedback.training_data import write_records

TOKEN_VARIABLE = "ROPEWALK_ENDPOINT_TOKEN"  # noqa: S105 - its name


class OpenReview:
    """A review that is under way."""

    def __init__(self, review: Review, folder: Path, port: int) -> None:
        """Raises ConfigError where the port is taken."""
        self.review, self.folder = review, folder
        self.results: list[str] = []  # what was made of the judgements, and how far reviewers agree
        try:
            self.server = ReviewServer(review, self.write_files, port)
        except OSError as error:
            raise ConfigError(f"port {port} of {LOOPBACK}: {error.strerror}; --port 0 takes any that is free") from error

    @property
    def words(self) -> str:
        """How much there is to do."""
        judged, total, _ = self.review.progress()
        return f"{self.review.run.id}: {counted(total - judged, 'item')} to judge for {self.review.reviewer}, {judged} judged"

    def serve(self, on_line: Callable[[], None] | None = None) -> None:
        """Serve until Ctrl-C or SIGTERM; `on_line` is called for each line of standard input."""
        if on_line:
            threading.Thread(target=_each_line, args=(on_line,), daemon=True).start()
        with suppress(KeyboardInterrupt):
            self.server.serve_forever(poll_interval=0.2)

    def write_files(self) -> list[str]:
        """Write what has been judged by now for align and finetune; the files that have anything in them."""
        written = []
        self.results.clear()
        for name, made in ((PAIRS, reviewed_pairs(self.review.run)), (CHATS, reviewed_conversations(self.review.run))):
            if made.records:
                write_records(self.folder / name, made.records)
                written.append(str(self.folder / name))
            reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in made.left_out.items())
            left_out = f"; left out: {reasons}" if reasons else ""
            self.results.append(f"{counted(len(made.records), 'record')} → {self.folder / name}{left_out}")
        return written


@contextmanager
def open_review(
    run: str, *, reviewer: str | None, ask_at: str | None, sample: bool, out: Path | None, port: int
) -> Iterator[OpenReview]:
    """Open a run's review for one person. Raises ConfigError where the run captured nothing, or the port is taken."""
    found = find_run(run)
    if not (found.path / FOLDER / "exchanges").is_dir():
        raise ConfigError(f"{found.id} has captured no exchanges: serve with capture={{share: 1.0}}, and ask it something first")
    capture = (found.record.get("config") or {}).get("capture")
    kinds = CaptureConfig.model_validate(capture or {}).mask
    name = (reviewer or getpass.getuser()).strip()
    mask(["once"], kinds)  # compiled kernels are loaded before somebody waits for a page
    ask = _asks(found, ask_at) if sample else None
    sampler = Sampler(found.path, ask, kinds) if ask else None
    review = Review(found, name, kinds, sampler)
    try:
        opened = OpenReview(review, out or found.path / FOLDER / "review", port)
    except ConfigError:
        review.close()
        raise
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with suppress(KeyboardInterrupt):  # it may come between the address that is told and the first request
            yield opened
    finally:
        signal.signal(signal.SIGTERM, before)
        opened.server.server_close()
        review.close()
        opened.write_files()
        opened.results += [agreement_words(one) for one in review.agreements()]


def _asks(run: RunDir, address: str | None) -> Ask | None:
    """How a second answer is asked for: at this address, else where the run serves; None where it does not, at the moment."""
    if address:
        return endpoint(address, os.environ.get(TOKEN_VARIABLE))
    served = view_of(run).endpoint()
    return endpoint(served.address, served.token()) if served else None


def _each_line(on_line: Callable[[], None]) -> None:
    for _ in sys.stdin:
        on_line()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
