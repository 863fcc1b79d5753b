"""The HTTP interface of an engine: routes, authentication, and errors in OpenAI's form."""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ropewalk.jobs.inference.engines.api.answering import Answering
from ropewalk.jobs.inference.engines.api.bodies import (
    AnyRequest,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TemplateRequest,
    TokenizeRequest,
)
from ropewalk.jobs.inference.engines.api.errors import ApiError
from ropewalk.jobs.inference.engines.api.generation_request import read_request
from ropewalk.jobs.inference.engines.api.openapi import openapi
from ropewalk.jobs.inference.engines.api.prompts import Prompts
from ropewalk.jobs.inference.engines.api.read import MOST_BYTES, parse
from ropewalk.jobs.inference.engines.sampler import Sampler

log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


class Loaded(NamedTuple):
    """A loaded model."""

    sampler: Sampler
    prompts: Prompts


class Api:
    """The API of one model; until it is loaded, all routes but `/health` answer 503."""

    def __init__(self, model: str, token: str | None = None) -> None:
        self.model = model
        self.loaded: Loaded | None = None
        self._token, self._created = token, int(time.time())
        self.app = Starlette(
            routes=[
                Route("/health", self._guard(self._health, public=True)),
                Route("/v1/models", self._guard(self._models)),
                Route("/v1/models/{model:path}", self._guard(self._model_by_name)),
                Route("/v1/completions", self._guard(self._completions), methods=["POST"]),
                Route("/v1/chat/completions", self._guard(self._chat), methods=["POST"]),
                Route("/openapi.json", self._guard(self._openapi, public=True)),
                Route("/tokenize", self._guard(self._tokenize), methods=["POST"]),
                Route("/detokenize", self._guard(self._detokenize), methods=["POST"]),
                Route("/apply-template", self._guard(self._template), methods=["POST"]),
            ],
            exception_handlers={HTTPException: _http_error},
        )

    def _guard(self, endpoint: Endpoint, *, public: bool = False) -> Endpoint:
        """Wrap an endpoint: check the token, and return every error in OpenAI's form."""

        async def guard(request: Request) -> Response:
            try:
                if not public:
                    self._check_token(request)
                return await endpoint(request)
            except ApiError as error:
                return _error(error)
            except ClientDisconnect:
                return Response(status_code=400)
            except Exception:
                log.exception("a request failed")
                return _error(ApiError("the engine failed; see its log", status=500, code="engine_failed"))

        return guard

    def _check_token(self, request: Request) -> None:
        if self._token is None:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token.encode()):
            raise ApiError(
                "the API token is missing or wrong; send 'Authorization: Bearer TOKEN'", status=401, code="invalid_api_key"
            )

    def _ready(self) -> Loaded:
        if self.loaded is None:
            raise ApiError("the model is still being loaded; try again", status=503, code="loading")
        return self.loaded

    async def _health(self, request: Request) -> Response:
        if self.loaded is None:
            return _json({"status": "loading"}, 503)
        running, waiting = self.loaded.sampler.load()
        return _json({"status": "ok", "slots": self.loaded.sampler.slots, "running": running, "waiting": waiting})

    async def _models(self, request: Request) -> Response:
        return _json({"object": "list", "data": [self._model()]})

    async def _openapi(self, request: Request) -> Response:
        return _json(openapi(self.model))

    async def _model_by_name(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name != self.model:
            raise ApiError(
                f"the model {name!r} does not exist; this engine serves {self.model!r}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return _json(self._model())

    def _model(self) -> dict[str, Any]:
        entry = {"id": self.model, "object": "model", "created": self._created, "owned_by": "ropewalk"}
        return entry | ({"max_model_len": self.loaded.sampler.context} if self.loaded else {})

    async def _completions(self, request: Request) -> Response:
        return await self._answer(parse(await _body(request), CompletionRequest))

    async def _chat(self, request: Request) -> Response:
        return await self._answer(parse(await _body(request), ChatRequest))

    async def _answer(self, body: AnyRequest) -> Response:
        sampler, prompts = self._ready()
        return Answering(await asyncio.to_thread(read_request, body, prompts, sampler, self.model), sampler, prompts.text)

    async def _tokenize(self, request: Request) -> Response:
        body = parse(await _body(request), TokenizeRequest)
        tokens = await asyncio.to_thread(self._ready().prompts.of_tokenize, body)
        return _json({"tokens": tokens, "count": len(tokens), "max_model_len": self._ready().sampler.context})

    async def _detokenize(self, request: Request) -> Response:
        body = parse(await _body(request), DetokenizeRequest)
        return _json({"content": await asyncio.to_thread(self._ready().prompts.decode, body.tokens)})

    async def _template(self, request: Request) -> Response:
        body = parse(await _body(request), TemplateRequest)
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []] or None
        return _json({"prompt": await asyncio.to_thread(self._ready().prompts.template, body.messages, tools)})


async def _body(request: Request) -> bytes:
    """Read the body of a request. Raises ApiError if it is too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise ApiError(f"the body has more than {MOST_BYTES} bytes; send less", status=413, code="request_too_large")
    return bytes(body)


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")


def _error(error: ApiError) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {"Retry-After": "1"} if error.status == 503 else None
    return _json(error.body(), error.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer for the router: an unknown path, or a method that it does not support."""
    assert isinstance(error, HTTPException)
    messages = {404: f"unknown path {request.url.path}", 405: f"{request.url.path} does not support {request.method}"}
    response = _error(ApiError(messages.get(error.status_code, str(error.detail)), status=error.status_code))
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response
