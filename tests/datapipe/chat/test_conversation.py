"""Every format becomes messages; what is no conversation has a reason."""

from typing import Any

import pytest

from ropewalk.datapipe.chat.config import ChatConfig
from ropewalk.datapipe.chat.conversation import BadConversationError, Conversation, conversation_of

USER, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "S"}


def read(record: dict[str, Any], **config: Any) -> Conversation:
    return conversation_of(record, ChatConfig(**config))


@pytest.mark.parametrize(
    ("record", "messages", "learn_from"),
    [
        ({"messages": [SYSTEM, USER, ANSWER]}, [SYSTEM, USER, ANSWER], 0),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "A"}]}]}, [USER, ANSWER], 0),
        ({"prompt": "Q", "completion": "A"}, [USER, ANSWER], 1),
        ({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}, [USER, ANSWER, USER, ANSWER], 3),
        ({"instruction": "Q", "input": "", "output": "A"}, [USER, ANSWER], 0),
        ({"instruction": "Q", "input": "x", "output": "A", "system": "S"}, [SYSTEM, {**USER, "content": "Q\n\nx"}, ANSWER], 0),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, [USER, ANSWER], 0),
        (
            {"system": "S", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            [SYSTEM, USER, ANSWER],
            0,
        ),
    ],
)
def test_formats(record: dict[str, Any], messages: list[Any], learn_from: int) -> None:
    result = read(record)
    assert (result.messages, result.learn_from) == (messages, learn_from)


def test_a_system_prompt_of_the_users_own_and_tools() -> None:
    result = read({"prompt": "Q", "completion": "A", "tools": [{"name": "t"}]}, system="S")
    assert (result.messages, result.learn_from, result.tools) == ([SYSTEM, USER, ANSWER], 2, [{"name": "t"}])
    assert read({"messages": [SYSTEM, USER, ANSWER]}, system="other").messages[0] == SYSTEM
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "t"}}]}
    calls = [USER, call, {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}, ANSWER]
    assert read({"messages": calls}).messages == calls


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "plain"}, "not_a_conversation"),
        ({"messages": []}, "no_messages"),
        ({"messages": 3}, "no_messages"),
        ({"messages": ["Q"]}, "message_not_an_object"),
        ({"messages": [{"role": "king", "content": "Q"}]}, "unknown_role"),
        ({"messages": [{"role": None, "content": "Q"}]}, "unknown_role"),
        ({"messages": [{"role": "user", "content": None}]}, "content_not_text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "content_not_text"),
        ({"instruction": "Q", "output": None}, "content_not_text"),
        ({"messages": [USER]}, "no_assistant_turn"),
        ({"prompt": [USER, ANSWER], "completion": [USER]}, "no_assistant_turn"),
        ({"messages": [USER, USER, ANSWER]}, "roles_do_not_alternate"),
        ({"messages": [ANSWER, USER, ANSWER]}, "roles_do_not_alternate"),
        ({"messages": [USER, ANSWER, ANSWER]}, "roles_do_not_alternate"),
        ({"messages": [USER, SYSTEM, ANSWER]}, "roles_do_not_alternate"),
        ({"prompt": "Q", "completion": " \n"}, "empty_answer"),
    ],
)
def test_what_is_no_conversation_has_a_reason(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadConversationError) as error:
        read(record)
    assert error.value.reason == reason
