"""Ray Serve before an engine, as a peer: python -m tests.benchmarks.serve_ray PORT URL. It passes the engine's bytes on."""

import signal
import sys

import httpx
import ray
from fastapi import FastAPI, Request
from ray import serve
from starlette.responses import StreamingResponse

app = FastAPI()


@serve.deployment(max_ongoing_requests=100)
@serve.ingress(app)
class Forward:
    """A replica that asks an engine beside it."""

    def __init__(self, url: str) -> None:
        self.client = httpx.AsyncClient(base_url=url, timeout=60)

    @app.post("/v1/chat/completions")
    async def chat(self, request: Request) -> StreamingResponse:
        """Pass a stream on."""
        requested = self.client.build_request("POST", "/v1/chat/completions", content=await request.body())
        answer = await self.client.send(requested, stream=True)
        return StreamingResponse(answer.aiter_raw(), answer.status_code, media_type=answer.headers.get("content-type"))


def main() -> None:
    """Serve until SIGTERM."""
    port, url = int(sys.argv[1]), sys.argv[2]
    ray.init(num_cpus=4, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Forward.bind(url))  # type: ignore[attr-defined]
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
