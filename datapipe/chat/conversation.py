"""Records of the usual formats as conversations: messages with roles, checked before any template sees them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ropewalk.datapipe.chat.config import ChatConfig

Message = dict[str, Any]  # role, content; tool_calls, name, ... are kept for the template

ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    **{"developer": "system", "human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"},
    **{"function_call": "assistant", "observation": "tool", "function": "tool", "function_response": "tool", "ipython": "tool"},
}


class BadConversationError(Exception):
    """A record that is not learnt from; `reason` is one of few words, `detail` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages, the tools that the assistant may call, and from which message on its turns are learnt."""

    messages: list[Message]
    tools: list[Any] | None = None
    learn_from: int = 0


def conversation_of(record: Mapping[str, Any], config: ChatConfig) -> Conversation:
    """The conversation of a record, to learn its assistant's turns from. Raises BadConversationError."""
    kind = config.format if config.format != "auto" else _kind_of(record)
    found = _READERS[kind](record)
    if config.system is not None and found.messages and found.messages[0]["role"] != "system":
        start = found.learn_from + 1 if found.learn_from else 0
        found = replace(found, messages=[{"role": "system", "content": config.system}, *found.messages], learn_from=start)
    check_roles(found.messages)
    learnt = [m for m in found.messages[found.learn_from :] if m["role"] == "assistant"]
    if not learnt:
        raise BadConversationError("no_assistant_turn")
    if not any(m.get("tool_calls") or (m["content"] or "").strip() for m in learnt):
        raise BadConversationError("empty_answer")
    return found


def _kind_of(record: Mapping[str, Any]) -> str:
    if record.get("messages") is not None:
        return "messages"
    if record.get("conversations") is not None:
        return "sharegpt"
    if record.get("prompt") is not None and "completion" in record:
        return "prompt_completion"
    if record.get("instruction") is not None and "output" in record:
        return "alpaca"
    raise BadConversationError("not_a_conversation", f"its keys are {', '.join(sorted(record)[:8])}")


def messages_of(value: Any, role: str) -> list[Message]:
    """A string as one message of this role, or a list of messages. Raises BadConversationError."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, Sequence) or not value:
        raise BadConversationError("no_messages", f"found {type(value).__name__}")
    return [_message(one) for one in value]


def _message(value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise BadConversationError("message_not_an_object", f"found {type(value).__name__}")
    named = value.get("role", value.get("from"))
    role = ROLES.get(named.lower()) if isinstance(named, str) else None
    if role is None:
        raise BadConversationError("unknown_role", repr(named))
    content = value.get("content", value.get("value"))
    rest = {
        key: one for key, one in value.items() if key not in {"role", "from", "content", "value", "weight"} and one is not None
    }
    return {"role": role, "content": _text_of(content, may_be_empty=bool(rest.get("tool_calls"))), **rest}


def _text_of(content: Any, *, may_be_empty: bool) -> str | None:
    """The text of a message, whose parts (`{type: text, text: ...}`) are joined."""
    if isinstance(content, str):
        return content
    if content is None and may_be_empty:
        return None
    if isinstance(content, Sequence) and content:
        found = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [text for text in found if isinstance(text, str)]
        if len(texts) == len(found):
            return "".join(texts)
    raise BadConversationError("content_not_text", f"found {type(content).__name__}")


def check_roles(messages: Sequence[Message]) -> None:
    """Raise BadConversationError unless the turns alternate: system first, then user and assistant, tools after the assistant."""
    before = ""
    allowed = {
        "": {"system", "user"},
        "system": {"user"},
        "user": {"assistant"},
        "assistant": {"user", "tool"},
        "tool": {"tool", "assistant"},
    }
    for number, message in enumerate(messages):
        if message["role"] not in allowed[before]:
            raise BadConversationError(
                "roles_do_not_alternate", f"{message['role']} follows {before or 'nothing'} (message {number})"
            )
        before = message["role"]


def _tools_of(record: Mapping[str, Any]) -> list[Any] | None:
    tools = record.get("tools")
    return list(tools) if isinstance(tools, Sequence) and not isinstance(tools, str) and tools else None


def _from_messages(record: Mapping[str, Any]) -> Conversation:
    return Conversation(messages=messages_of(record.get("messages"), "user"), tools=_tools_of(record))


def _from_sharegpt(record: Mapping[str, Any]) -> Conversation:
    messages = messages_of(record.get("conversations"), "user")
    if isinstance(record.get("system"), str) and record["system"] and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": record["system"]}, *messages]
    return Conversation(messages=messages, tools=_tools_of(record))


def _from_prompt_completion(record: Mapping[str, Any]) -> Conversation:
    prompt = messages_of(record.get("prompt"), "user")
    answer = messages_of(record.get("completion"), "assistant")
    return Conversation(messages=[*prompt, *answer], tools=_tools_of(record), learn_from=len(prompt))


def _from_alpaca(record: Mapping[str, Any]) -> Conversation:
    instruction, more, output = record.get("instruction"), record.get("input"), record.get("output")
    if not isinstance(instruction, str) or not isinstance(output, str):
        raise BadConversationError("content_not_text", "instruction and output must be strings")
    asked = f"{instruction}\n\n{more}" if isinstance(more, str) and more.strip() else instruction
    system = record.get("system")
    first = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    return Conversation(messages=[*first, {"role": "user", "content": asked}, {"role": "assistant", "content": output}])


_READERS = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "prompt_completion": _from_prompt_completion,
    "alpaca": _from_alpaca,
}
