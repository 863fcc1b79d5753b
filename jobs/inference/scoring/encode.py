"""Text as the requests of a scorer: how a context and its continuation become tokens."""

from collections.abc import Sequence
from typing import Any

from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.inference.scoring.requests import Request


def encode(opened: OpenModel, text: str) -> list[int]:
    """The tokens of a text, with the beginning-of-text token where the tokenizer puts one and the text has none yet."""
    tokenizer: Any = opened.tokenizer
    begins = bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))
    return list(tokenizer(text, **({"add_special_tokens": False} if begins else {})).input_ids)


def pair_request(opened: OpenModel, context: str, continuation: str, lengths: Sequence[float] = ()) -> Request:
    """How likely is a continuation after a context, as text.

    Spaces at the context's end belong to the continuation, as they do in the text that the model has learnt; without a context
    the model's prefix token stands there.
    """
    if not context:
        tokens = list(opened.tokenizer(continuation, add_special_tokens=False).input_ids)
        if tokens and tokens[0] == opened.prefix:
            return Request((tokens[0],), tuple(tokens[1:]), tuple(lengths))
        return Request((opened.prefix,), tuple(tokens), tuple(lengths))
    bare = context.rstrip()
    whole, before = encode(opened, context + continuation), encode(opened, bare)
    return Request(tuple(before), tuple(whole[len(before) :]), tuple(lengths))


def text_request(opened: OpenModel, text: str) -> Request:
    """How likely is a whole text, after the prefix token."""
    return pair_request(opened, "", text)


def rolling_requests(opened: OpenModel, text: str) -> list[Request]:
    """Requests that predict each token of a text once, in windows of what the model sees, the last one with a whole window."""
    tokens, longest = encode(opened, text), opened.max_length
    found = [Request((opened.prefix,), tuple(tokens[:longest]))] if tokens else []
    for begin in range(longest, len(tokens), longest):
        end = min(begin + longest, len(tokens))
        found.append(Request(tuple(tokens[end - longest - 1 : begin]), tuple(tokens[begin:end])))
    return found
