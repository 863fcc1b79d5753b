"""A conversation with a run that serves, through its endpoint."""

from typing import Any

import httpx2

from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.jobs.inference.scoring.generate import Sampling
from ropewalk.jobs.runs.show.endpoint import Endpoint
from ropewalk.jobs.runs.show.status import find_run
from ropewalk.jobs.runs.show.view import view_of

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 600.0


class EndpointChat:
    """One conversation. The model is whatever the endpoint serves by default."""

    def __init__(self, endpoint: Endpoint, sampling: Sampling, *, system: str | None = None, seed: int = 0) -> None:
        self.endpoint, self.sampling, self.seed = endpoint, sampling, seed
        token = endpoint.token()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self._address = ""  # where it was last found

    def answer(self, words: str) -> str:
        """What the endpoint answers. Raises BackendError where it does not."""
        asked = [*self.messages, {"role": "user", "content": words}]
        body: dict[str, Any] = {"messages": asked, "max_tokens": self.sampling.max_new_tokens, "seed": self.seed}
        body |= {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p}
        found = self._post("/v1/chat/completions", body)
        said = str(found["choices"][0]["message"].get("content") or "").strip()
        self.messages = [*asked, {"role": "assistant", "content": said}]
        return said

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        address = self._address = self._address or self._find()
        limits = httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
        try:
            answer = httpx2.post(f"{address}{path}", json=body, headers=self._headers, timeout=limits)
        except httpx2.TransportError as error:
            self._address = ""
            raise BackendError(f"{address} (on {self.endpoint.node}) does not answer here: {error}{self._way()}") from None
        if answer.status_code != 200:
            raise BackendError(f"{address} answers {answer.status_code}: {_message(answer)}")
        found: dict[str, Any] = answer.json()
        return found

    def _find(self) -> str:
        """Where the endpoint answers: its own address, or the end of a tunnel to it. Raises BackendError where it does not."""
        endpoint, said = self.endpoint, ""
        for address in filter(None, (endpoint.address, endpoint.tunnelled)):
            try:
                if "replicas" in httpx2.get(f"{address}/healthz", timeout=CONNECT_SECONDS).json():
                    return address
            except (httpx2.TransportError, ValueError) as error:
                said = said or str(error)
        words = said or "somebody else listens there"
        raise BackendError(f"{endpoint.address} (on {endpoint.node}) does not answer here: {words}{self._way()}")

    def _way(self) -> str:
        return f"; from another machine: {self.endpoint.tunnel}" if self.endpoint.tunnel else ""


def _message(answer: httpx2.Response) -> str:
    """The words of an error in OpenAI's form, else the beginning of the body."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]


def find_endpoint(ref: str) -> Endpoint | None:
    """The endpoint of a run that serves; None where `ref` is no such run. Raises ConfigError for one that does not answer now."""
    try:
        run = find_run(ref)
    except ConfigError:
        return None
    view = view_of(run)
    if not view.serves:
        return None
    endpoint = view.endpoint()
    if endpoint is None:
        raise ConfigError(f"{run.id} listens nowhere now: `ropewalk why {run.id}`, `ropewalk resume {run.id}`")
    return endpoint
