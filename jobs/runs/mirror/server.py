"""Queries of W&B's server: availability, and the number of history lines of a run."""

import logging
import netrc
import os
import socket
from urllib.parse import urlsplit

import httpx2

from ropewalk.cluster.errors import BackendError

log = logging.getLogger(__name__)

DEFAULT_URL = "https://api.wandb.ai"
SECONDS = 10.0
_LINES = """
query Lines($project: String!, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) { bucket(name: $name, missingOk: true) { historyLineCount } }
}
"""


def base_url() -> str:
    """Return the server's address, from the environment if set."""
    return (os.environ.get("WANDB_BASE_URL") or DEFAULT_URL).rstrip("/")


def api_key() -> str | None:
    """Return the API key from the environment, else from ~/.netrc (written by `wandb login`), else None."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    try:
        login = netrc.netrc().authenticators(urlsplit(base_url()).hostname or "")
    except (OSError, netrc.NetrcParseError):
        return None
    return login[2] if login else None


def unavailable_reason() -> str:
    """Return the reason why nothing can be sent to the server now, or an empty string."""
    if not api_key():
        return "there is no W&B key: run `wandb login`, or set WANDB_API_KEY"
    parts = urlsplit(base_url())
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=3).close()
    except OSError as error:
        return f"W&B's server {base_url()} does not answer ({error})"
    return ""


def history_lines(name: str, project: str, entity: str | None) -> int:
    """Return the number of history lines that the server has of a run; 0 for an unknown run. Raises BackendError."""
    try:
        answer = httpx2.post(
            f"{base_url()}/graphql",
            json={"query": _LINES, "operationName": "Lines", "variables": {"project": project, "entity": entity, "name": name}},
            auth=("api", api_key() or ""),
            timeout=SECONDS,
        )
        answer.raise_for_status()
        model = (answer.json().get("data") or {}).get("model") or {}
    except (httpx2.HTTPError, ValueError) as error:
        raise BackendError(f"W&B's server {base_url()} did not return the number of lines of {name}: {error}") from None
    return int((model.get("bucket") or {}).get("historyLineCount") or 0)
