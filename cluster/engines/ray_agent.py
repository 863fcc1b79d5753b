"""Stand in for one of the two agents of a Ray node: a process that imports nothing, and becomes the agent once somebody asks it.

Usage: python -I -S ray_agent.py AGENT.py --node-id=ID --session-dir=DIR ...  The words are those of Ray's own agent.
The dashboard's agent has no ports without a dashboard, and says so. The agent of run-time environments listens, and only a run
that uses such environments connects to it. A node of Ray waits for both, and ends when one of them does.
"""

import os
import select
import socket
import sys

NO_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
PORT = "runtime_env_agent_port"
PORT_OPTION = "--runtime-env-agent-port="
LOOK_SECONDS = 0.5


def main(words: list[str]) -> None:
    """Say on which ports the agent is to be asked, and wait for the end of the node or for somebody who asks."""
    parent = os.getppid()
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    place = f"{options['session-dir']}/%s_{options['node-id']}"
    with socket.socket() as listener:
        if PORT_OPTION in "".join(words):
            given = options.get("runtime-env-agent-port", "")
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((options["node-ip-address"], int(given) if given.isdigit() else 0))
            listener.listen()
            port = listener.getsockname()[1]
            write(place % PORT, port)
            while not select.select([listener], [], [], LOOK_SECONDS)[0]:
                if os.getppid() != parent:
                    return
            others = [word for word in words if not word.startswith(PORT_OPTION)]
            os.execv(sys.executable, [sys.executable, "-u", *others, f"{PORT_OPTION}{port}"])  # noqa: S606
    for name in NO_PORTS:
        write(place % name, -1)
    while os.getppid() == parent:
        select.select([], [], [], LOOK_SECONDS)


def write(path: str, port: int) -> None:
    """Put a port where the node looks for it."""
    with open(f"{path}.new", "w") as stream:
        stream.write(str(port))
    os.replace(f"{path}.new", path)


if __name__ == "__main__":
    main(sys.argv[1:])
