"""Convert records of the usual formats to conversations: messages with roles, checked before any template sees them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ropewalk.datapipe.chat.config import ChatConfig

Message = dict[str, Any]  # role, content; tool_calls, name, ... are passed on to the template

ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    **{"developer": "system", "human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"},
    **{"function_call": "assistant", "observation": "tool", "function": "tool", "function_response": "tool", "ipython": "tool"},
}


class BadConversationError(Exception):
    """A record that is rejected; `reason` is one of a few identifiers, `detail` explains it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages, the tools that the assistant may call, and the first message whose turns are trained on."""

    messages: list[Message]
    tools: list[Any] | None = None
    learn_from: int = 0


def conversation_of(record: Mapping[str, Any], config: ChatConfig) -> Conversation:
    """Convert a record to a conversation with a trainable turn of the assistant. Raises BadConversationError."""
    kind = config.format if config.format != "auto" else _kind_of(record)
    result = _READERS[kind](record)
    if config.system is not None and result.messages and result.messages[0]["role"] != "system":
        start = result.learn_from + 1 if result.learn_from else 0
        result = replace(result, messages=[{"role": "system", "content": config.system}, *result.messages], learn_from=start)
    check_roles(result.messages)
    learnt = [m for m in result.messages[result.learn_from :] if m["role"] == "assistant"]
    if not learnt:
        raise BadConversationError("no_assistant_turn")
    if not any(m.get("tool_calls") or (m["content"] or "").strip() for m in learnt):
        raise BadConversationError("empty_answer")
    return result


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
    """Convert a string to one message of this role, or check a list of messages. Raises BadConversationError."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, Sequence) or not value:
        raise BadConversationError("no_messages", f"found {type(value).__name__}")
    return [_message(item) for item in value]


def _message(value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise BadConversationError("message_not_an_object", f"found {type(value).__name__}")
    name = value.get("role", value.get("from"))
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise BadConversationError("unknown_role", repr(name))
    content = value.get("content", value.get("value"))
    rest = {
        key: item for key, item in value.items() if key not in {"role", "from", "content", "value", "weight"} and item is not None
    }
    return {"role": role, "content": _text_of(content, may_be_empty=bool(rest.get("tool_calls"))), **rest}


def _text_of(content: Any, *, may_be_empty: bool) -> str | None:
    """Return the text of a message; parts (`{type: text, text: ...}`) are joined."""
    if isinstance(content, str):
        return content
    if content is None and may_be_empty:
        return None
    if isinstance(content, Sequence) and content:
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [text for text in parts if isinstance(text, str)]
        if len(texts) == len(parts):
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
    question = f"{instruction}\n\n{more}" if isinstance(more, str) and more.strip() else instruction
    system = record.get("system")
    first = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    return Conversation(messages=[*first, {"role": "user", "content": question}, {"role": "assistant", "content": output}])


_READERS = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "prompt_completion": _from_prompt_completion,
    "alpaca": _from_alpaca,
}
