"""Records of an attempt's group servers in its folder: their addresses, and the numbers of groups that they have reserved.

A later server takes over from one whose node is dead or cut off. The earlier one may come back, so both reserve the numbers.
"""

from pathlib import Path

from ropewalk.cluster.fresh_reads import read_afresh
from ropewalk.cluster.run.files import append_line, parse_lines
from ropewalk.cluster.run.names import GROUP_SERVERS, GROUPS


def announce_group_server(attempt: Path, term: int, host: str, port: int) -> None:
    """Record the address of a group server in the attempt's folder. `term`: a higher one than those of earlier servers."""
    append_line(attempt / GROUP_SERVERS, {"term": term, "host": host, "port": port})


def group_server_address(attempt: Path) -> tuple[str, int] | None:
    """Return the host and port of the attempt's newest group server; None before the first one."""
    servers = parse_lines(read_afresh(attempt / GROUP_SERVERS))[0]
    newest = max(servers, key=lambda server: int(server["term"]), default=None)
    return (str(newest["host"]), int(newest["port"])) if newest else None


def reserve_group(attempt: Path, after: int) -> int:
    """Reserve the first free number above `after` for a group, exclusively among machines, and return it."""
    number = after + 1
    while True:
        try:
            (attempt / GROUPS / f"{number:06d}.reserved").open("x").close()
        except FileExistsError:
            number += 1
        else:
            return number
