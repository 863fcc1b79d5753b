"""Readers of an engine's event stream: pass it through, or convert it into the continuation of an earlier stream."""

import re
from abc import ABC, abstractmethod
from typing import Any

from ropewalk.jobs.serving.serve.gateway.exchange.events import (
    DONE,
    DONE_EVENT,
    SentStream,
    as_event,
    datas,
    objects,
    payload,
    piece_of,
    whole_events,
)
from ropewalk.jobs.serving.serve.gateway.exchange.request import CHAT, ModelRequest

_LIST = rb'"(prompt_)?token_ids":\[([-\d,\s]*)\]'
# quotes inside JSON strings are escaped, so a match is always a key with its value
_IDS = re.compile(rb"," + _LIST + rb"|" + _LIST + rb",|,\"(?:prompt_)?token_ids\":null")
_ENDS = (b"data: [DONE]", b'data: {"error"')


class DivergedError(Exception):
    """A repeated answer differs from the part already sent."""


class Reader(ABC):
    """Converts an engine's bytes into bytes for the client."""

    def __init__(self) -> None:
        self.prompt_ids: list[int] = []
        self.token_ids: list[int] = []
        self.has_token_ids = False
        self.ended = False  # the stream's end or an error was among the bytes
        self._held = b""

    @abstractmethod
    def feed(self, data: bytes) -> bytes:
        """Return the next bytes for the client, whole events only; `token_ids` then has their tokens."""

    def _whole(self, data: bytes) -> bytes:
        """Return the events that are complete."""
        held = self._held + data if self._held else data
        end = whole_events(held)
        self._held = held[end:]
        return held[:end]

    def _events(self, data: bytes) -> tuple[list[dict[str, Any]], bool]:
        """Return (events that are complete, True if the stream's end was among them)."""
        lines = list(datas(self._whole(data)))
        events = list(objects(lines))
        self.ended = self.ended or DONE in lines or any("error" in event for event in events)
        return events, DONE in lines


class PassThrough(Reader):
    """Forwards events unchanged, except for token ids that only the gateway requested, which are removed."""

    def __init__(self, *, keep_ids: bool) -> None:
        super().__init__()
        self._keep_ids = keep_ids

    def feed(self, data: bytes) -> bytes:
        if not (ready := self._whole(data)):
            return b""
        self.ended = any(end in ready for end in _ENDS)
        self.prompt_ids, self.token_ids, self.has_token_ids = [], [], False
        stripped = _IDS.sub(self._take, ready)
        return ready if self._keep_ids else stripped

    def _take(self, match: "re.Match[bytes]") -> bytes:
        of_prompt, id_list = match[1] or match[3], match[2] if match[2] is not None else match[4]
        if id_list is not None:
            ids = [int(word) for word in id_list.split(b",")] if id_list.strip() else []
            if of_prompt:
                self.prompt_ids += ids
            else:
                self.has_token_ids = True
                self.token_ids += ids
        return b""


class CompletionReader(Reader):
    """Rewrites events of a completion as the continuation of an earlier stream."""

    def __init__(self, request: ModelRequest, sent: SentStream) -> None:
        super().__init__()
        self._chat = request.path == CHAT
        self._like = sent.first or {"choices": [{"index": 0}]}
        self._counts = len(sent.prompt_ids), len(sent.token_ids or [])

    def feed(self, data: bytes) -> bytes:
        self.token_ids, self.has_token_ids = [], False
        events, done = self._events(data)
        out = b"".join(as_event(rewritten) for event in events if (rewritten := self._rewrite(event)) is not None)
        return out + DONE_EVENT if done else out

    def last(self, reason: str) -> bytes:
        """Return the event with the finish reason."""
        return as_event(self._event_like_first("", reason))

    def usage(self) -> dict[str, Any]:
        """Return the usage event, for a stream whose tokens were all sent."""
        like = {key: value for key, value in self._like.items() if key not in ("prompt_token_ids", "usage")}
        return self._with_counts({**like, "choices": [], "usage": {}})

    def _rewrite(self, event: dict[str, Any]) -> dict[str, Any] | None:
        if "error" in event:
            return event
        choices = event.get("choices")
        if not choices:
            return self._with_counts(event) if event.get("usage") is not None else None
        choice = choices[0]
        if isinstance(ids := choice.get("token_ids"), list):
            self.token_ids += ids
            self.has_token_ids = True
        text, reason = piece_of(choice, chat=False), choice.get("finish_reason")
        return self._event_like_first(text, reason) if text or reason is not None else None

    def _event_like_first(self, text: str, reason: str | None) -> dict[str, Any]:
        like = {key: value for key, value in self._like["choices"][0].items() if key != "token_ids"}
        if self._chat:
            like["delta"] = {"content": text} if text or reason is None else {}
        else:
            like["text"] = text
        like["finish_reason"] = reason
        event = {key: value for key, value in self._like.items() if key != "prompt_token_ids"} | {"choices": [like]}
        return event | {"usage": None} if "usage" in event else event

    def _with_counts(self, event: dict[str, Any]) -> dict[str, Any]:
        names: dict[str, Any] = {
            key: self._like[key] for key in ("id", "created", "model", "object", "system_fingerprint") if key in self._like
        }
        prompt, sent = self._counts
        completion = sent + int(event["usage"].get("completion_tokens") or 0)
        counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return {**event, **names, "usage": {**event["usage"], **counts}}


class ReplayReader(Reader):
    """Skips the part of a repeated answer that the client already has, and gives the rest the ids of the first part."""

    def __init__(self, sent: SentStream) -> None:
        super().__init__()
        self._expected = [payload(event) for event in sent.events]
        self._like = sent.events[0] if sent.events else {}
        self._position = 0

    def feed(self, data: bytes) -> bytes:
        """Return the next bytes for the client, whole events only. Raises DivergedError."""
        events, done = self._events(data)
        out = b""
        for event in events:
            if self._position < len(self._expected):
                if "error" in event or payload(event) != self._expected[self._position]:
                    raise DivergedError
                self._position += 1
                continue
            names = {key: self._like[key] for key in ("id", "created", "system_fingerprint") if key in self._like}
            out += as_event({**event, **{key: value for key, value in names.items() if key in event}})
        if done and self._position < len(self._expected):
            raise DivergedError
        return out + DONE_EVENT if done else out
