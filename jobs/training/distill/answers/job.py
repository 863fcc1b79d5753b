"""Query a served teacher prompt by prompt; each answer is written immediately and never requested again."""

import json
import os
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx2

from ropewalk.cluster.errors import BackendError, ConfigError, DataError, StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import write_atomically
from ropewalk.jobs.runs.program.finished import Ledger
from ropewalk.jobs.training.distill.answers.config import AnswersConfig
from ropewalk.jobs.training.distill.answers.questions import Question, questions

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}  # temporary errors
_PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)  # the last one is repeated
LEDGER = "answers"
_LOOK_SECONDS = 0.5


class Endpoint:
    """A client for several threads. Its token is read here, and never written."""

    def __init__(self, config: AnswersConfig) -> None:
        self.config = config
        token = read_token(config.auth)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        limits = httpx2.Limits(max_connections=config.at_once)
        self._client = httpx2.Client(base_url=config.endpoint, headers=headers, timeout=config.request_seconds, limits=limits)

    def close(self) -> None:
        """Close all connections, which ends pending requests."""
        self._client.close()

    def model(self) -> str:
        """Return the model to request. Raises BackendError, ConfigError."""
        if self.config.model is not None:
            return self.config.model
        names = [str(entry["id"]) for entry in self._send("GET", "/v1/models", None).json().get("data", [])]
        if not names:
            raise ConfigError(f"endpoint: {self.config.endpoint} lists no model; set model")
        return names[0]

    def ask(self, question: Question, model: str) -> dict[str, Any]:
        """Return the record of a question: {answer} or {rejected: reason}. Raises BackendError if the endpoint is unavailable."""
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
        """Repeat a request until its response is no temporary error."""
        until, tries, problem = time.monotonic() + self.config.patience_seconds, 0, ""
        while True:
            try:
                answer = self._client.request(method, path, json=body)
                if answer.status_code not in _AGAIN:
                    if answer.status_code in {401, 403}:
                        raise ConfigError(f"endpoint: {self.config.endpoint} rejects the token ({answer.status_code}); set auth")
                    return answer
                problem = f"{answer.status_code} {answer.text[:200]}"
            except httpx2.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            if time.monotonic() > until:
                raise BackendError(f"endpoint: {self.config.endpoint} does not answer: {problem}; is it up?")
            time.sleep(_PAUSES_SECONDS[min(tries, len(_PAUSES_SECONDS) - 1)])
            tries += 1


def read_token(auth: str | None) -> str | None:
    """Return the token in an environment variable or a file. Raises ConfigError if there is none."""
    if auth is None:
        return None
    if "/" in auth:
        try:
            return Path(auth).read_text().strip()
        except OSError as error:
            raise ConfigError(f"auth: {auth} cannot be read: {error.strerror}; name a file with the token") from None
    token = os.environ.get(auth)
    if not token:
        raise ConfigError(f"auth: the environment variable {auth} is not set on the machine of the run; set it, or name a file")
    return token


def main(context: JobContext) -> dict[str, object]:
    """Answer every question, then write the conversations; returns counts. Raises StopRequested."""
    config = context.config(AnswersConfig)
    rejected: Counter[str] = Counter()
    all_questions = list(questions(config, rejected))
    if not all_questions:
        raise DataError(f"prompts: {config.prompts} has no usable prompt ({dict(rejected)}); check its records")
    ledger = Ledger(context, LEDGER)
    endpoint = Endpoint(config)
    try:
        _ask_all(context, config, ledger, endpoint, [question for question in all_questions if question.key not in ledger])
    finally:
        endpoint.close()
    return _conclude(context, config, ledger, all_questions, rejected)


def _ask_all(context: JobContext, config: AnswersConfig, ledger: Ledger, endpoint: Endpoint, open_: list[Question]) -> None:
    if not open_:
        return
    model, waiting = endpoint.model(), list(reversed(open_))
    under_way: dict[Future[dict[str, Any]], Question] = {}
    with ThreadPoolExecutor(config.at_once) as pool:
        while waiting or under_way:
            if context.stop_requested():
                pool.shutdown(wait=False, cancel_futures=True)
                endpoint.close()
                raise StopRequested(f"{len(ledger)} answers are stored")
            while waiting and len(under_way) < config.at_once:
                question = waiting.pop()
                under_way[pool.submit(endpoint.ask, question, model)] = question
            done, _ = wait(under_way, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                ledger.add(under_way.pop(future).key, {"model": model, **future.result()})
    ledger.sync()


def _conclude(
    context: JobContext, config: AnswersConfig, ledger: Ledger, all_questions: list[Question], rejected: Counter[str]
) -> dict[str, object]:
    lines = []
    for question in all_questions:
        record = ledger.get(question.key)
        assert record is not None, "all are answered"
        if "rejected" in record:
            rejected[record["rejected"]] += 1
            continue
        messages = [*question.messages, {"role": "assistant", "content": record["answer"]}]
        lines.append(json.dumps({"id": question.key, "messages": messages}, ensure_ascii=False) + "\n")
    if not lines:
        raise DataError(f"endpoint: {config.endpoint} gave no usable answer: {dict(rejected)}")
    context.fence.check()
    Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(config.output), "".join(lines).encode())
    return {"output": config.output, "answers": len(lines), "rejected": sum(rejected.values()), "reasons": dict(rejected)}
