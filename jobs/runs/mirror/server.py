"""What W&B's server says of itself and of a run: whether it answers, and how many lines of history it has."""

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
    """The server's address: that of a team's own server where the environment names one."""
    return (os.environ.get("WANDB_BASE_URL") or DEFAULT_URL).rstrip("/")


def api_key() -> str | None:
    """The key out of the environment, or that `wandb login` has left in ~/.netrc."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    try:
        found = netrc.netrc().authenticators(urlsplit(base_url()).hostname or "")
    except (OSError, netrc.NetrcParseError):
        return None
    return found[2] if found else None


def why_away() -> str:
    """Why nothing can be sent to the server now; empty if it can."""
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
    """How many lines of history the server has of a run; 0 if it does not know the run. Raises BackendError."""
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
        raise BackendError(f"W&B's server {base_url()} does not say how much it has of {name}: {error}") from None
    return int((model.get("bucket") or {}).get("historyLineCount") or 0)
