"""Start the processes of one Ray node, as `ray start --block` does, without the unused ones.

Usage: python -m ropewalk.cluster.engines.ray_start --ip IP --cpus N --gpus N --temp-dir DIR
(--head-port PORT | --address HOST:PORT)
Prints STARTED when the node answers. Exits with its parent, or when a process of the node exits. Exit codes: 143 if a process
of Ray did not become ready in time, else 1.

Ray's own command line imports four times as much as a node needs. Dashboard server, client server and autoscaler monitor are
not started, and the log monitor is a thread of this process. The node's two agents, each an interpreter that imports Ray, are
replaced by idle stand-ins (see ray_agent.py).
"""

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import log_monitor, ray_constants, services, utils
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._private.node import Node
from ray._private.parameter import RayParams

from ropewalk.cluster.engines.ray import START_SECONDS, STARTED
from ropewalk.cluster.errors import EXIT_FAILED, EXIT_LOST_PEER, EXIT_TERMINATED
from ropewalk.cluster.process.kill import end, family

log = logging.getLogger(__name__)

CHECK_SECONDS = 0.3
GONE_SECONDS = 10  # until a process-local Ray that does not answer counts as dead (Ray's default: 60)
LOCAL_STORE_BYTES = 100 << 20  # object store of a process-local Ray: only plans and summaries pass through it
RAYS_PATIENCE_SECONDS = 29.0  # Ray fails after waiting for 30 s, with different errors
AGENT = str(Path(__file__).with_name("ray_agent.py"))
AGENTS = {ray_constants.PROCESS_TYPE_DASHBOARD_AGENT, ray_constants.PROCESS_TYPE_RUNTIME_ENV_AGENT}


def main() -> None:
    """Start the node, and run until a process of it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ip", required=True, help="numeric address of this node")
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--object-store-bytes", type=int, required=True)
    parser.add_argument("--temp-dir", required=True, help="a short path, since sockets are created below it")
    parser.add_argument("--follow-logs", action="store_true", help="forward the output of this node's workers to their drivers")
    role = parser.add_mutually_exclusive_group(required=True)
    role.add_argument("--head-port", type=int, help="start a head node at this port")
    role.add_argument("--address", help="HOST:PORT of the head node to join")
    options = parser.parse_args()
    threading.Thread(target=_watch_parent, args=(os.getppid(),), name="parent-watch", daemon=True).start()
    began = time.monotonic()
    try:
        node = start(options)
    except Exception as error:
        log.exception("Ray did not start")
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        end(process for process in family(os.getpid()) if process.pid != os.getpid())
        os._exit(EXIT_TERMINATED if time.monotonic() - began > RAYS_PATIENCE_SECONDS else EXIT_FAILED)
    sys.stdout.write(f"{STARTED} at {node.address}\n")
    sys.stdout.flush()
    if options.follow_logs:
        threading.Thread(target=_follow_logs, args=(node, options.ip), name="log-monitor", daemon=True).start()
    while not (dead := node.dead_processes()):
        time.sleep(CHECK_SECONDS)
    sys.stderr.write(f"processes of Ray ended: {', '.join(f'{name} with {p.returncode}' for name, p in dead)}\n")
    end(process for process in family(os.getpid()) if process.pid != os.getpid())
    os._exit(EXIT_FAILED)


def start(options: argparse.Namespace) -> Node:
    """Start the processes of a node: the head node, unless `options.address` is set. Raises Ray's exceptions."""
    parameters = RayParams(
        node_ip_address=options.ip,
        node_name=options.ip,
        num_cpus=options.cpus,
        num_gpus=options.gpus,
        object_store_memory=options.object_store_bytes,
        min_worker_port=0,
        max_worker_port=0,
        temp_dir=options.temp_dir,
        gcs_address=options.address,
        gcs_server_port=options.head_port,
        include_dashboard=False,
        include_log_monitor=False,
        no_monitor=True,
        dashboard_agent_listen_port=0,
        resources={},
        labels={},
    )
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ensure_token_if_auth_enabled(None, create_token_if_missing=False)
    with light_node():
        services.get_node = retry_until_registered(services.get_node)
        node = Node(parameters, head=options.address is None, shutdown_at_exit=True, spawn_reaper=True)
    utils.write_ray_address(node.address, options.temp_dir)
    return node


def start_local(cpus: int) -> None:
    """Start a Ray for this process only, which ends with it. Raises Ray's exceptions."""
    with light_node():
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=LOCAL_STORE_BYTES,
            include_dashboard=False,
            logging_level=logging.WARNING,
            _system_config={"gcs_rpc_server_reconnect_timeout_s": GONE_SECONDS},
        )


@contextmanager
def light_node() -> Iterator[None]:
    """Start Ray nodes inside this block with stand-ins for their agents, without dashboard and autoscaler."""
    serve, scale = Node.start_api_server, Node.start_monitor
    build, minimal = services._build_python_executable_command_memory_profileable, utils.get_dashboard_dependency_error

    def command(component: str, *arguments: Any, **options: Any) -> list[str]:
        return [sys.executable, "-I", "-S", AGENT] if component in AGENTS else list(build(component, *arguments, **options))

    services._build_python_executable_command_memory_profileable = command
    utils.get_dashboard_dependency_error = lambda: ImportError("the dashboard is not used")
    Node.start_api_server = Node.start_monitor = lambda *_, **__: None
    try:
        yield
    finally:
        services._build_python_executable_command_memory_profileable = build
        utils.get_dashboard_dependency_error = minimal
        Node.start_api_server, Node.start_monitor = serve, scale


def retry_until_registered(query: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a query for a node so that it is retried until the node is registered, for at most START_SECONDS."""

    def retrying(*arguments: Any) -> Any:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return query(*arguments)
            except RuntimeError:  # the node is not registered yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(CHECK_SECONDS)

    return retrying


def _watch_parent(parent: int) -> None:
    """Kill all processes of Ray when the parent of this process is gone."""
    while os.getppid() == parent:
        time.sleep(CHECK_SECONDS)
    end(process for process in family(os.getpid()) if process.pid != os.getpid())
    os._exit(EXIT_LOST_PEER)


def _follow_logs(node: Node, ip: str) -> None:
    """Forward the output of this node's workers to their drivers."""
    log_monitor.logger.setLevel(logging.WARNING)
    client = ray._raylet.GcsClient(address=node.gcs_address)
    try:
        monitor = log_monitor.LogMonitor(
            ip, node.get_logs_dir_path(), client, log_monitor.is_proc_alive, gcs_address=node.gcs_address
        )
        monitor.run()
    except Exception:  # only the forwarding of output is affected
        log.exception("the output of workers is no longer forwarded")


if __name__ == "__main__":
    main()
