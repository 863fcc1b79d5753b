"""The HTTP interface of an engine: its routes, who may use them, and errors in OpenAI's form."""

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
from ropewalk.jobs.inference.engines.api.asked import read_request
from ropewalk.jobs.inference.engines.api.bodies import (
    AnyRequest,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TemplateRequest,
    TokenizeRequest,
)
from ropewalk.jobs.inference.engines.api.errors import ApiError
from ropewalk.jobs.inference.engines.api.openapi import openapi
from ropewalk.jobs.inference.engines.api.prompts import Prompts
from ropewalk.jobs.inference.engines.api.read import MOST_BYTES, parse
from ropewalk.jobs.inference.engines.sampler import Sampler

log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


class Loaded(NamedTuple):
    """A model that can be asked."""

    sampler: Sampler
    prompts: Prompts


class Api:
    """The API of one model; until it is loaded all but `/health` answer 503."""

    def __init__(self, model: str, token: str | None = None) -> None:
        self.model = model
        self.loaded: Loaded | None = None
        self._token, self._created = token, int(time.time())
        self.app = Starlette(
            routes=[
                Route("/health", self._guarded(self._health, public=True)),
                Route("/v1/models", self._guarded(self._models)),
                Route("/v1/models/{model:path}", self._guarded(self._one_model)),
                Route("/v1/completions", self._guarded(self._completions), methods=["POST"]),
                Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
                Route("/openapi.json", self._guarded(self._openapi, public=True)),
                Route("/tokenize", self._guarded(self._tokenize), methods=["POST"]),
                Route("/detokenize", self._guarded(self._detokenize), methods=["POST"]),
                Route("/apply-template", self._guarded(self._template), methods=["POST"]),
            ],
            exception_handlers={HTTPException: _http_error},
        )

    def _guarded(self, endpoint: Endpoint, *, public: bool = False) -> Endpoint:
        """The endpoint for those who have the token, with every error in OpenAI's form."""

        async def guarded(request: Request) -> Response:
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
                return _error(ApiError("the engine failed; its log says why", status=500, code="engine_failed"))

        return guarded

    def _check_token(self, request: Request) -> None:
        if self._token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
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

    async def _one_model(self, request: Request) -> Response:
        asked = request.path_params["model"]
        if asked != self.model:
            raise ApiError(
                f"there is no model {asked!r} here; this is {self.model!r}", status=404, param="model", code="model_not_found"
            )
        return _json(self._model())

    def _model(self) -> dict[str, Any]:
        found = {"id": self.model, "object": "model", "created": self._created, "owned_by": "ropewalk"}
        return found | ({"max_model_len": self.loaded.sampler.context} if self.loaded else {})

    async def _completions(self, request: Request) -> Response:
        return self._answering(parse(await _body(request), CompletionRequest))

    async def _chat(self, request: Request) -> Response:
        return self._answering(parse(await _body(request), ChatRequest))

    def _answering(self, body: AnyRequest) -> Response:
        sampler, prompts = self._ready()
        return Answering(read_request(body, prompts, sampler, self.model), sampler, prompts.text)

    async def _tokenize(self, request: Request) -> Response:
        body = parse(await _body(request), TokenizeRequest)
        tokens = self._ready().prompts.of_tokenize(body)
        return _json({"tokens": tokens, "count": len(tokens), "max_model_len": self._ready().sampler.context})

    async def _detokenize(self, request: Request) -> Response:
        body = parse(await _body(request), DetokenizeRequest)
        return _json({"content": self._ready().prompts.decode(body.tokens)})

    async def _template(self, request: Request) -> Response:
        body = parse(await _body(request), TemplateRequest)
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []] or None
        return _json({"prompt": self._ready().prompts.template(body.messages, tools)})


async def _body(request: Request) -> bytes:
    """The bytes of a request. Raises ApiError where they are too many."""
    found = bytearray()
    async for chunk in request.stream():
        found += chunk
        if len(found) > MOST_BYTES:
            raise ApiError(f"the body has more than {MOST_BYTES} bytes; send less", status=413, code="request_too_large")
    return bytes(found)


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, "application/json")


def _error(error: ApiError) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {"Retry-After": "1"} if error.status == 503 else None
    return _json(error.body(), error.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the routes refuse: a path that is none, a method that is not for it."""
    assert isinstance(error, HTTPException)
    words = {404: f"there is no {request.url.path} here", 405: f"{request.method} is not for {request.url.path}"}
    found = _error(ApiError(words.get(error.status_code, str(error.detail)), status=error.status_code))
    for name, value in (error.headers or {}).items():
        found.headers[name] = value
    return found
