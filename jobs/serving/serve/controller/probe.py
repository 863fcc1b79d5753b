"""Probe of a new version: a first request to each replica before it gets traffic."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

MAX_TOKENS = 8


def probe_engine(url: str, model: str, prompt: str, token: str | None, seconds: float) -> str:
    """Request a greedy completion; return the error, or an empty string."""
    body = {"model": model, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0}
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            body_json = json.loads(answer.read())
        text = body_json["choices"][0]["text"]
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}: {error.read(500).decode(errors='replace')}"
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    except (KeyError, IndexError, TypeError):
        return f"the response has no choices: {str(body_json)[:300]}"
    return "" if isinstance(text, str) else f"the response is not text: {str(text)[:300]}"


class Probes:
    """Running probes, each in a thread, and their results."""

    def __init__(self, prompt: str, token: str | None, seconds: float) -> None:
        self.prompt, self.token, self.seconds = prompt, token, seconds
        self._results: dict[str, str | None] = {}

    def result(self, app: str) -> str | None:
        """Return the error of an application's probe, empty if it passed, or None if it has not finished."""
        return self._results.get(app)

    def start(self, app: str, version: str, replicas: Sequence[Mapping[str, Any]]) -> None:
        """Probe every replica of an application, unless it has been probed or is being probed."""
        if app in self._results or not replicas:
            return
        self._results[app] = None

        def run() -> None:
            errors = (probe_engine(str(replica["url"]), version, self.prompt, self.token, self.seconds) for replica in replicas)
            self._results[app] = next(filter(None, errors), "")

        threading.Thread(target=run, name=f"probe-{app}", daemon=True).start()

    def forget(self, app: str) -> None:
        """Discard the result, so that the application can be probed again."""
        self._results.pop(app, None)
