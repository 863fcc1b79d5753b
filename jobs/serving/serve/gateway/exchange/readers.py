"""What becomes of an engine's events on their way to the client: nothing, unless the client has their beginning already."""

import re
from typing import Any, Protocol

from ropewalk.jobs.serving.serve.gateway.exchange.asked import CHAT, Asked
from ropewalk.jobs.serving.serve.gateway.exchange.sent import Sent, payload, piece_of
from ropewalk.jobs.serving.serve.gateway.http.events import DONE, DONE_EVENT, as_event, datas, objects, whole_events

_LIST = rb'"(prompt_)?token_ids":\[([-\d,\s]*)\]'
# a quote inside of a JSON text is escaped: what is found stands between values
_IDS = re.compile(rb"," + _LIST + rb"|" + _LIST + rb",|,\"(?:prompt_)?token_ids\":null")
_ENDS = (b"data: [DONE]", b'data: {"error"')


class DivergedError(Exception):
    """An answer that was asked again is another one: it cannot be joined with what was sent."""


class Reader(Protocol):
    """Takes an engine's bytes, and gives those for the client."""

    prompt_ids: list[int]
    token_ids: list[int]
    told_ids: bool

    def feed(self, data: bytes) -> bytes:
        """The next bytes for the client: whole events. `token_ids` has the tokens of them."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the stream's end, or an error, was among them."""
        ...


class Pass:
    """Passes events on as they are. Token ids that only the gateway asked for are taken out; the other bytes stay."""

    def __init__(self, *, keep_ids: bool) -> None:
        self.prompt_ids: list[int] = []
        self.token_ids: list[int] = []
        self.told_ids = False
        self._keep_ids = keep_ids
        self._held = self._last = b""

    def feed(self, data: bytes) -> bytes:
        """The next bytes for the client: whole events."""
        held = self._held + data if self._held else data
        end = whole_events(held)
        ready, self._held = held[:end], held[end:]
        if not ready:
            return b""
        self._last = ready
        self.prompt_ids, self.token_ids, self.told_ids = [], [], False
        without = _IDS.sub(self._take, ready)
        return ready if self._keep_ids else without

    def _take(self, match: "re.Match[bytes]") -> bytes:
        of_prompt, listed = match[1] or match[3], match[2] if match[2] is not None else match[4]
        if listed is not None:
            ids = [int(word) for word in listed.split(b",")] if listed.strip() else []
            if of_prompt:
                self.prompt_ids += ids
            else:
                self.told_ids = True
                self.token_ids += ids
        return b""

    @property
    def ended(self) -> bool:
        """Whether the stream's end, or an error, came last."""
        return any(end in self._last for end in _ENDS)


class _Made:
    """What readers share that make events anew."""

    def __init__(self) -> None:
        self.prompt_ids: list[int] = []
        self.token_ids: list[int] = []
        self.told_ids = False
        self.ended = False
        self._held = b""

    def _events(self, data: bytes) -> tuple[list[dict[str, Any]], bool]:
        """(The objects of the events that are whole, whether the stream's end was among them)."""
        self._held += data
        end = whole_events(self._held)
        ready, self._held = self._held[:end], self._held[end:]
        found = list(datas(ready))
        objects_found = list(objects(found))
        self.ended = self.ended or DONE in found or any("error" in one for one in objects_found)
        return objects_found, DONE in found


class Rest(_Made):
    """Makes of the events of a completion those of the stream that it continues."""

    def __init__(self, asked: Asked, sent: Sent) -> None:
        super().__init__()
        self._chat = asked.path == CHAT
        self._like = sent.first or {"choices": [{"index": 0}]}
        self._counts = len(sent.prompt_ids), len(sent.token_ids or [])

    def feed(self, data: bytes) -> bytes:
        """The next bytes for the client: whole events."""
        self.token_ids, self.told_ids = [], False
        found, done = self._events(data)
        out = b"".join(as_event(made) for one in found if (made := self._made(one)) is not None)
        return out + DONE_EVENT if done else out

    def last(self, reason: str) -> bytes:
        """The event that says why the stream ended."""
        return as_event(self._as_before("", reason))

    def usage(self) -> dict[str, Any]:
        """The event that counts tokens, where none are to come."""
        like = {key: value for key, value in self._like.items() if key not in ("prompt_token_ids", "usage")}
        return self._counted({**like, "choices": [], "usage": {}})

    def _made(self, one: dict[str, Any]) -> dict[str, Any] | None:
        if "error" in one:
            return one
        choices = one.get("choices")
        if not choices:
            return self._counted(one) if one.get("usage") is not None else None
        choice = choices[0]
        if isinstance(ids := choice.get("token_ids"), list):
            self.token_ids += ids
            self.told_ids = True
        text, reason = piece_of(choice, chat=False), choice.get("finish_reason")
        return self._as_before(text, reason) if text or reason is not None else None

    def _as_before(self, text: str, reason: str | None) -> dict[str, Any]:
        like = {key: value for key, value in self._like["choices"][0].items() if key != "token_ids"}
        if self._chat:
            like["delta"] = {"content": text} if text or reason is None else {}
        else:
            like["text"] = text
        like["finish_reason"] = reason
        made = {key: value for key, value in self._like.items() if key != "prompt_token_ids"} | {"choices": [like]}
        return made | {"usage": None} if "usage" in made else made

    def _counted(self, one: dict[str, Any]) -> dict[str, Any]:
        names: dict[str, Any] = {
            key: self._like[key] for key in ("id", "created", "model", "object", "system_fingerprint") if key in self._like
        }
        prompt, sent = self._counts
        completion = sent + int(one["usage"].get("completion_tokens") or 0)
        counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return {**one, **names, "usage": {**one["usage"], **counts}}


class Replay(_Made):
    """Leaves out of an answer that was asked again what the client has already, and names the rest as the first part."""

    def __init__(self, sent: Sent) -> None:
        super().__init__()
        self._known = [payload(one) for one in sent.events]
        self._like = sent.events[0] if sent.events else {}
        self._at = 0

    def feed(self, data: bytes) -> bytes:
        """The next bytes for the client: whole events. Raises DivergedError."""
        found, done = self._events(data)
        out = b""
        for one in found:
            if self._at < len(self._known):
                if "error" in one or payload(one) != self._known[self._at]:
                    raise DivergedError
                self._at += 1
                continue
            names = {key: self._like[key] for key in ("id", "created", "system_fingerprint") if key in self._like}
            out += as_event({**one, **{key: value for key, value in names.items() if key in one}})
        if done and self._at < len(self._known):
            raise DivergedError
        return out + DONE_EVENT if done else out
