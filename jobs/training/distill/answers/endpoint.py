"""One question to an OpenAI endpoint: its answer, or why there is none."""

import os
import time
from pathlib import Path
from typing import Any

import httpx2

from ropewalk.cluster.errors import BackendError, ConfigError
from ropewalk.jobs.training.distill.answers.config import AnswersConfig
from ropewalk.jobs.training.distill.answers.questions import Question

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}  # what may be otherwise in a moment
_PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)  # the last one again and again


class Endpoint:
    """Asks by several threads at once. Its token is read here, and written nowhere."""

    def __init__(self, config: AnswersConfig) -> None:
        self.config = config
        token = read_token(config.auth)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        limits = httpx2.Limits(max_connections=config.at_once)
        self._client = httpx2.Client(base_url=config.endpoint, headers=headers, timeout=config.request_seconds, limits=limits)

    def close(self) -> None:
        """Close all connections: requests under way end."""
        self._client.close()

    def model(self) -> str:
        """The model to ask for. Raises BackendError, ConfigError."""
        if self.config.model is not None:
            return self.config.model
        names = [str(one["id"]) for one in self._send("GET", "/v1/models", None).json().get("data", [])]
        if not names:
            raise ConfigError(f"endpoint: {self.config.endpoint} names no model; set model")
        return names[0]

    def ask(self, question: Question, model: str) -> dict[str, Any]:
        """What is written down of a question: {answer} or {rejected: reason}. Raises BackendError where nobody answers."""
        body = {
            "model": model,
            "messages": question.messages,
            "max_tokens": self.config.max_tokens,
            "temperature": self.config.temperature,
            "top_p": self.config.top_p,
            "seed": question.seed,
        }
        answer = self._send("POST", "/v1/chat/completions", body)
        if answer.status_code >= 400:
            return {"rejected": f"refused_{answer.status_code}", "detail": answer.text[:300]}
        choice = answer.json()["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        if not text:
            return {"rejected": "empty_answer"}
        return {"rejected": "truncated"} if finish == "length" else {"answer": text}

    def _send(self, method: str, path: str, body: Any) -> httpx2.Response:
        """The response, once there is one that is no passing trouble."""
        until, tries, said = time.monotonic() + self.config.patience_seconds, 0, ""
        while True:
            try:
                answer = self._client.request(method, path, json=body)
                if answer.status_code not in _AGAIN:
                    if answer.status_code in {401, 403}:
                        raise ConfigError(f"endpoint: {self.config.endpoint} refuses the token ({answer.status_code}); set auth")
                    return answer
                said = f"{answer.status_code} {answer.text[:200]}"
            except httpx2.HTTPError as error:
                said = f"{type(error).__name__}: {error}"
            if time.monotonic() > until:
                raise BackendError(f"endpoint: {self.config.endpoint} does not answer: {said}; is it up?")
            time.sleep(_PAUSES_SECONDS[min(tries, len(_PAUSES_SECONDS) - 1)])
            tries += 1


def read_token(auth: str | None) -> str | None:
    """The token in an environment variable or a file. Raises ConfigError where there is none."""
    if auth is None:
        return None
    if "/" in auth:
        try:
            return Path(auth).read_text().strip()
        except OSError as error:
            raise ConfigError(f"auth: {auth} cannot be read: {error.strerror}; name a file with the token") from None
    token = os.environ.get(auth)
    if not token:
        raise ConfigError(f"auth: the environment variable {auth} is not set where the run runs; set it, or name a file")
    return token
