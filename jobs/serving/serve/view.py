"""How a serving run is shown and explained: where it listens, which versions answer, what became of updates."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.errors import RopewalkError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import read_json
from ropewalk.cluster.text import counted
from ropewalk.jobs.runs.show.endpoint import Endpoint
from ropewalk.jobs.runs.show.view import RunView
from ropewalk.jobs.serving.serve.files import ServingFiles

if TYPE_CHECKING:
    from rich.console import RenderableType


class ServeView(RunView):
    """Address, versions and replicas, beside what every run shows."""

    serves = True

    def __init__(self, run: RunDir) -> None:
        super().__init__(run)
        self.files = ServingFiles(run)

    def endpoint(self) -> Endpoint | None:
        """Where the run, or the one that it hands over to once that serves, can be asked; None: nowhere now."""
        own, found = self._own_endpoint(), read_json(self.files.successor)
        if not found:
            return own
        other = ServeView(RunDir(self.run.path.parent / str(found["run"])))
        serves = (read_json(other.files.state) or {}).get("stable")
        return (other.endpoint() or own) if serves or own is None else own

    def _own_endpoint(self) -> Endpoint | None:
        found = read_json(self.files.address)
        if not found or found.get("closed") or self.run.outcome(int(found["attempt"])) is not None:
            return None
        auth = (self.run.record.get("config") or {}).get("auth") or {}
        tunnel = self._tunnel(found)
        return Endpoint(
            address=str(found["address"]),
            node=str(found.get("node") or ""),
            variable=auth.get("variable"),
            file=auth.get("file"),
            tunnel=tunnel,
            tunnelled=f"http://127.0.0.1:{found['port']}" if tunnel else "",
        )

    def _tunnel(self, found: Mapping[str, Any]) -> str:
        """The command by which another machine reaches the address; empty where none is needed."""
        try:
            return load_backend(str(self.run.record.get("cluster", "local"))).tunnel_command(
                self.run, str(found["node"]), int(found["port"])
            )
        except RopewalkError:  # the cluster is not described on this machine
            return ""

    def plain(self) -> dict[str, Any]:
        """Address, versions, aliases, and how much is asked of them."""
        endpoint, load = self.endpoint(), read_json(self.files.load) or {}
        routes, state = read_json(self.files.routes) or {}, read_json(self.files.state) or {}
        return {
            "address": endpoint.address if endpoint is not None else None,
            "tunnel": (endpoint.tunnel or None) if endpoint is not None else None,
            "versions": version_rows(state, routes, load),
            "aliases": routes.get("aliases") or {},
            "requests_per_second": load.get("requests_per_second"),
            "successor": (read_json(self.files.successor) or {}).get("run"),
        }

    def page(self, details: Mapping[str, Any]) -> "RenderableType":
        """The run, where it listens, and its versions."""
        from rich.console import Group
        from rich.text import Text

        from ropewalk.jobs.runs.show.tables import run_page, table

        found = self.plain()
        parts: list[Any] = [run_page({**details, "results": details.get("results") or {}})]
        if found["address"]:
            parts.append(Text(f"address: {found['address']}", style="bold"))
            if found["tunnel"]:
                parts.append(Text(f"from here: {found['tunnel']}", overflow="fold"))
            parts.append(Text(f"talk to it: ropewalk chat {self.run.id}", style="dim"))
        if found["successor"]:
            parts.append(Text(f"handed over to {found['successor']}"))
        if found["versions"]:
            made = table(
                "VERSION", "STATE", "TRAFFIC", ">REPLICAS", ">RUNNING", ">REQUESTS", ">ERRORS", "CAUSE", title="versions"
            )
            keys = ("version", "state", "traffic", "replicas", "running", "requests", "errors", "cause")
            for row in found["versions"]:
                made.add_row(*(str(row[key]) for key in keys))
            parts.append(made)
        return Group(*parts)

    def explain(self) -> list[str]:
        """Which version serves, and why others do not."""
        found = self.plain()
        lines = []
        for row in found["versions"]:
            if row["state"] == "refused":
                lines.append(f"version {row['version']} was refused: {row['cause']}")
            elif row["traffic"]:
                replicas = counted(row["replicas"], "replica")
                lines.append(f"version {row['version']} gets {row['traffic']} of the traffic, on {replicas}")
            elif row["state"] in {"loading", "probing"}:
                lines.append(f"version {row['version']} is {row['state']} since {time.time() - row['since']:.0f} s")
        if found["address"]:
            lines.append(f"it listens at {found['address']}")
        return lines


def version_rows(state: Mapping[str, Any], routes: Mapping[str, Any], load: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a version, the serving ones first."""
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
