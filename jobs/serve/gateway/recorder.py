"""The capture of exchanges, where the settings name a folder for it."""

from collections.abc import Callable
from typing import Any, Protocol

from jobs.serve.gateway.exchange.archive import Finished
from jobs.serve.gateway.settings import GatewaySettings


class Capture(Protocol):
    """What the capture offers: `jobs.feedback.capture.Capture`, and fakes of tests."""

    def record(self, exchange: Any) -> None:
        """Take an exchange."""

    async def feedback(self, body: bytes) -> tuple[int, bytes]:
        """Take a rating or a correction."""
        ...

    async def close(self) -> None:
        """Write down what is left."""


class Recording:
    """Hands exchanges to the capture in its own form."""

    def __init__(self, capture: Capture, form: Callable[..., Any]) -> None:
        self._capture, self._form = capture, form

    def record(self, finished: Finished) -> None:
        """Take an exchange; never waits."""
        self._capture.record(self._form(**finished._asdict()))

    async def feedback(self, body: bytes) -> tuple[int, bytes]:
        """Take a rating or a correction."""
        return await self._capture.feedback(body)

    async def close(self) -> None:
        """Write down what is left."""
        await self._capture.close()


async def open_recorder(settings: GatewaySettings, on_durable: Callable[[list[str]], None]) -> Recording | None:
    """The capture, started; None where nothing is to be kept."""
    return None
