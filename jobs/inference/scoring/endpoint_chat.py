"""A conversation with a serving run through its endpoint."""

from contextlib import ExitStack
from typing import Any

import httpx2

from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.jobs.inference.scoring.generate import Sampling
from ropewalk.jobs.inference.scoring.reach import CONNECT_SECONDS, reach
from ropewalk.jobs.runs.show.endpoint import Endpoint
from ropewalk.jobs.runs.show.status import find_run
from ropewalk.jobs.runs.show.view import view_of

ANSWER_SECONDS = 600.0


class EndpointChat:
    """A conversation with the endpoint's default model. Close it to end the tunnel that it may have made."""

    def __init__(self, endpoint: Endpoint, sampling: Sampling, *, system: str | None = None, seed: int = 0) -> None:
        self.endpoint, self.sampling, self.seed = endpoint, sampling, seed
        token = endpoint.token()
        self._verify = endpoint.verify()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self._address, self._resources = "", ExitStack()

    def introduction(self) -> str:
        """Return the address of the endpoint."""
        return f"chat with the model that is served at {self.endpoint.address}"

    def answer(self, text: str) -> str:
        """Return the endpoint's answer to a message. Raises BackendError if it gives none."""
        messages = [*self.messages, {"role": "user", "content": text}]
        body: dict[str, Any] = {"messages": messages, "max_tokens": self.sampling.max_new_tokens, "seed": self.seed}
        body |= {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p}
        completion = self._post("/v1/chat/completions", body)
        reply = str(completion["choices"][0]["message"].get("content") or "").strip()
        self.messages = [*messages, {"role": "assistant", "content": reply}]
        return reply

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        address = self._address = self._address or self._resources.enter_context(reach(self.endpoint))
        limits = httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        try:
            answer = httpx2.post(f"{address}{path}", json=body, headers=self._headers, timeout=limits, verify=self._verify)
        except httpx2.TransportError as error:
            self.close()
            raise BackendError(f"{address} (on {self.endpoint.node}) does not answer: {error}") from None
        if answer.status_code != 200:
            raise BackendError(f"{address} answers {answer.status_code}: {_message(answer)}")
        completion: dict[str, Any] = answer.json()
        return completion

    def close(self) -> None:
        self._resources.close()
        self._address = ""


def _message(answer: httpx2.Response) -> str:
    """Return the message of an error in OpenAI's form, or else the beginning of the body."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]


def find_endpoint(ref: str) -> Endpoint | None:
    """Return the endpoint of a serving run, or None if `ref` is not one.

    Raises ConfigError if the run has no endpoint at the moment.
    """
    try:
        run = find_run(ref)
    except ConfigError:
        return None
    view = view_of(run)
    if not view.serves:
        return None
    endpoint = view.endpoint()
    if endpoint is None:
        outcome = run.last_outcome()
        if outcome is None or not outcome.state.final:
            raise ConfigError(f"{run.id} does not serve yet; `ropewalk show {run.id}` prints its address when it does")
        raise ConfigError(f"{run.id} listens nowhere now: `ropewalk why {run.id}`, `ropewalk resume {run.id}`")
    return endpoint
