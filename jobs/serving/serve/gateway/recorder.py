"""The capture of exchanges, where the settings name a folder for it."""

from collections.abc import Callable, Sequence
from typing import Protocol

from ropewalk.jobs.serving.feedback.exchange import Exchange
from ropewalk.jobs.serving.serve.gateway.settings import GatewaySettings


class Recorder(Protocol):
    """Who writes exchanges down, and takes ratings and corrections: `ropewalk.jobs.serving.feedback.capture.Capture`."""

    def record(self, exchange: Exchange) -> None:
        """Take an exchange; never waits. A second time with the same id changes nothing."""

    async def feedback(self, number: str, body: bytes) -> tuple[int, bytes]:
        """Take a rating or a correction: status and body of the answer. A second time with the same number it is kept once."""
        ...

    async def close(self) -> None:
        """Write down what is left."""


async def open_recorder(settings: GatewaySettings, on_durable: Callable[[Sequence[str]], None]) -> Recorder | None:
    """The capture, started; None where nothing is to be kept."""
    if settings.feedback_folder is None:
        return None
    from ropewalk.jobs.serving.feedback.capture import Capture, CaptureConfig

    config = None if settings.capture is None else CaptureConfig.model_validate(settings.capture)
    capture = Capture(settings.feedback_folder, config, on_durable)
    await capture.start()
    return capture
