"""Stand-in for the agents of a Ray node: an idle process without imports, which becomes Ray's agent when it gets a connection.

Usage: python -I -S ray_agent.py AGENT.py --node-id=ID --session-dir=DIR ...  The arguments are those of Ray's agent.
In place of the dashboard agent it only reports that there are no ports. In place of the runtime-environment agent it listens;
only runs that use runtime environments connect. A Ray node waits for both agents, and ends when one of them ends.
"""

import os
import select
import socket
import sys

NO_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
PORT = "runtime_env_agent_port"
PORT_OPTION = "--runtime-env-agent-port="
POLL_SECONDS = 0.5


def main(arguments: list[str]) -> None:
    """Write the port files of the agent, and wait for a connection or the end of the node."""
    parent = os.getppid()
    options = dict(argument[2:].split("=", 1) for argument in arguments if argument.startswith("--") and "=" in argument)
    port_file = f"{options['session-dir']}/%s_{options['node-id']}"
    with socket.socket() as listener:
        if PORT_OPTION in "".join(arguments):
            wanted = options.get("runtime-env-agent-port", "")
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((options["node-ip-address"], int(wanted) if wanted.isdigit() else 0))
            listener.listen()
            port = listener.getsockname()[1]
            write(port_file % PORT, port)
            while not select.select([listener], [], [], POLL_SECONDS)[0]:
                if os.getppid() != parent:
                    return
            others = [argument for argument in arguments if not argument.startswith(PORT_OPTION)]
            os.execv(sys.executable, [sys.executable, "-u", *others, f"{PORT_OPTION}{port}"])  # noqa: S606
    for name in NO_PORTS:
        write(port_file % name, -1)
    while os.getppid() == parent:
        select.select([], [], [], POLL_SECONDS)


def write(path: str, port: int) -> None:
    """Write a port file atomically."""
    with open(f"{path}.new", "w") as stream:
        stream.write(str(port))
    os.replace(f"{path}.new", path)


if __name__ == "__main__":
    main(sys.argv[1:])
