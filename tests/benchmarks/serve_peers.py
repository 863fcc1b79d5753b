"""Peers of the gateway: other routers before an engine, started, awaited and ended."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import httpx

from tests.jobs.serving.serve.gateway.endpoint import chat


@contextlib.contextmanager
def vllm_router(python: str, engines: list[Any]) -> Iterator[tuple[str, list[int]]]:
    """The router of vLLM's production stack, before the same engines."""
    port = 18_431
    urls = [f"http://127.0.0.1:{engine.port}" for engine in engines]
    command = [python, "-m", "vllm_router.launch_router", "--worker-urls", *urls, "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _await_answer(f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}", [process.pid]
        finally:
            process.terminate()


@contextlib.contextmanager
def ray_serve(engines: list[Any]) -> Iterator[tuple[str, list[int]]]:
    """Ray Serve's HAProxy and direct streaming, before a replica that passes an engine's bytes on."""
    port = 18_432
    environment = {
        **os.environ,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
    }
    command = [sys.executable, "-m", "tests.benchmarks.serve_ray", str(port), f"http://127.0.0.1:{engines[0].port}"]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
        try:
            _await_answer(f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}", [process.pid]
        finally:
            process.terminate()


def _await_answer(url: str, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.post(url + "/v1/chat/completions", json=chat("hello", max_tokens=1), timeout=30).status_code == 200:
                return
        time.sleep(0.5)
    raise SystemExit(f"{url}: no answer within {seconds} s")
