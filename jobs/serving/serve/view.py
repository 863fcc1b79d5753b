"""Display of a serving run: address, versions, and the state of updates."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ropewalk.cluster.backends.profiles import backend_of
from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.text import counted
from ropewalk.jobs.runs.show.endpoint import Endpoint
from ropewalk.jobs.runs.show.status import is_final
from ropewalk.jobs.runs.show.view import RunView
from ropewalk.jobs.serving.serve.files import ServingFiles

if TYPE_CHECKING:
    from rich.console import RenderableType

ALL_INTERFACES = ("0.0.0.0", "::")  # noqa: S104 - compared with a configured host


class ServeView(RunView):
    """Shows address, versions and replicas of a run."""

    serves = True
    on_cancel = "closes its endpoint"

    def __init__(self, run: RunDir) -> None:
        super().__init__(run)
        self.files = ServingFiles(run)

    def endpoint(self) -> Endpoint | None:
        """Return the endpoint of the run, or of its successor once that serves; None if it is not serving."""
        endpoint, record = self._own_endpoint(), read_json(self.files.successor)
        if not record:
            return endpoint
        successor = ServeView(RunDir(self.run.path.parent / str(record["run"])))
        serves = (read_json(successor.files.state) or {}).get("stable")
        return (successor.endpoint() or endpoint) if serves or endpoint is None else endpoint

    def _own_endpoint(self) -> Endpoint | None:
        address = read_json(self.files.address)
        if not address or address.get("closed") or self.run.outcome(int(address["attempt"])) is not None:
            return None
        config = self.run.record.get("config") or {}
        auth, node = config.get("auth"), str(address.get("node") or "")
        source = auth if isinstance(auth, dict) else {}
        endpoint = Endpoint(
            address=str(address["address"]),
            node=node,
            variable=source.get("variable"),
            file=source.get("file"),
            certificate=(config.get("tls") or {}).get("cert"),
            tunnel=self._tunnel(address),
        )
        if config.get("host") in ALL_INTERFACES and not endpoint.is_here:
            return replace(endpoint, address=f"{urlsplit(endpoint.address).scheme}://{node}:{address['port']}")
        return endpoint

    def _tunnel(self, address: Mapping[str, Any]) -> Callable[[int], str] | None:
        """Return the command that forwards a port of this machine to the address; None if none is needed."""
        try:
            backend = backend_of(self.run)
        except RopewalkError:  # this machine has no profile of the cluster
            return None
        command = partial(backend.tunnel_command, self.run, str(address["node"]), int(address["port"]))
        return command if command(int(address["port"])) else None

    def plain(self) -> dict[str, Any]:
        endpoint, load = self.endpoint(), read_json(self.files.load) or {}
        routes, state = read_json(self.files.routes) or {}, read_json(self.files.state) or {}
        return {
            "address": endpoint.address if endpoint is not None else None,
            "tunnel": (endpoint.tunnel_command or None) if endpoint is not None else None,
            "versions": version_rows(state, routes, load),
            "aliases": routes.get("aliases") or {},
            "requests_per_second": load.get("requests_per_second"),
            "successor": (read_json(self.files.successor) or {}).get("run"),
        }

    def page(self, details: Mapping[str, Any]) -> "RenderableType":
        from rich.console import Group
        from rich.text import Text

        from ropewalk.jobs.runs.show.tables import run_page, table

        details_of_serving = self.plain()
        parts: list[Any] = [run_page({**details, "results": details.get("results") or {}})]
        if details_of_serving["address"]:
            parts += [Text(), Text(f"address: {details_of_serving['address']}", style="bold")]
            if details_of_serving["tunnel"]:
                parts.append(Text(f"tunnel: {details_of_serving['tunnel']}", overflow="fold"))
            parts.append(Text(f"chat: ropewalk chat {self.run.id}", style="dim"))
        if details_of_serving["successor"]:
            parts.append(Text(f"handed over to {details_of_serving['successor']}"))
        if details_of_serving["versions"]:
            rows = table(
                "VERSION", "STATE", "TRAFFIC", ">REPLICAS", ">RUNNING", ">REQUESTS", ">ERRORS", "CAUSE", title="versions"
            )
            keys = ("version", "state", "traffic", "replicas", "running", "requests", "errors", "cause")
            for row in details_of_serving["versions"]:
                rows.add_row(*(str(row[key]) for key in keys))
            parts.append(rows)
        return Group(*parts)

    def explain(self) -> list[str]:
        """Return a line per version: its traffic, state, or the reason it was refused; of an ended run the last alone."""
        serving = self.plain()
        lines = []
        for row in serving["versions"]:
            if row["state"] == "refused":
                lines.append(f"version {row['version']} was refused: {row['cause']}")
            elif is_final(self.run):
                continue
            elif row["traffic"]:
                replicas = counted(row["replicas"], "replica")
                lines.append(f"version {row['version']} gets {row['traffic']} of the traffic, on {replicas}")
            elif row["state"] in {"loading", "probing"}:
                lines.append(f"version {row['version']} has been {row['state']} for {time.time() - row['since']:.0f} s")
        if serving["address"]:
            lines.append(f"listening at {serving['address']}")
        return lines


def version_rows(state: Mapping[str, Any], routes: Mapping[str, Any], load: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row per version, versions with traffic first."""
    rows = []
    canary = state.get("canary") or {}
    share = max((float(alias.get("share") or 0) for alias in (routes.get("aliases") or {}).values()), default=0.0)
    for name, version in (state.get("versions") or {}).items():
        counts = (load.get("versions") or {}).get(name) or {}
        route = (routes.get("versions") or {}).get(name) or {}
        replicas = route.get("replicas") or []
        traffic = ""
        if name == canary.get("version"):
            traffic = f"{share:.0%}"
        elif name == state.get("stable"):
            traffic = f"{1 - share:.0%}" if canary else "all"
        rows.append(
            {
                **{"version": name, "state": version["phase"], "since": version["since"], "cause": version.get("cause") or ""},
                **{"traffic": traffic, "replicas": len(replicas), "model": route.get("model")},
                **{key: int(counts.get(key, 0)) for key in ("running", "queued", "requests", "errors")},
            }
        )
    return sorted(rows, key=lambda row: not row["traffic"])
