"""Ask a new version its first question, before anybody else does."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

MOST_TOKENS = 8


def ask(url: str, model: str, question: str, token: str | None, seconds: float) -> str:
    """Have an engine continue a text greedily; returns why that failed, or nothing."""
    body = {"model": model, "prompt": question, "max_tokens": MOST_TOKENS, "temperature": 0}
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            found = json.loads(answer.read())
        text = found["choices"][0]["text"]
    except urllib.error.HTTPError as error:
        return f"it answers {error.code}: {error.read(500).decode(errors='replace')}"
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    except (KeyError, IndexError, TypeError):
        return f"its answer has no choices: {str(found)[:300]}"
    return "" if isinstance(text, str) else f"its answer is no text: {str(text)[:300]}"


class Probes:
    """Questions that are under way, each in a thread, and how they ended."""

    def __init__(self, question: str, token: str | None, seconds: float) -> None:
        self.question, self.token, self.seconds = question, token, seconds
        self._ended: dict[str, str | None] = {}

    def of(self, app: str) -> str | None:
        """How the question to an application ended: nothing, or why it failed; None: it has not ended, or was not asked."""
        return self._ended.get(app)

    def begin(self, app: str, version: str, replicas: Sequence[Mapping[str, Any]]) -> None:
        """Ask every replica of an application, unless that is being done."""
        if app in self._ended or not replicas:
            return
        self._ended[app] = None

        def run() -> None:
            told = (ask(str(one["url"]), version, self.question, self.token, self.seconds) for one in replicas)
            self._ended[app] = next(filter(None, told), "")

        threading.Thread(target=run, name=f"probe-{app}", daemon=True).start()

    def forget(self, app: str) -> None:
        """Ask again when it is wanted again."""
        self._ended.pop(app, None)
