"""Encode text as requests of a scorer: context and continuation become tokens."""

from collections.abc import Sequence
from typing import Any

from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.inference.scoring.requests import Request


def encode(opened: OpenModel, text: str) -> list[int]:
    """Encode a text, with a beginning-of-text token if the tokenizer adds one and the text has none yet."""
    tokenizer: Any = opened.tokenizer
    begins = bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))
    return list(tokenizer(text, **({"add_special_tokens": False} if begins else {})).input_ids)


def pair_request(opened: OpenModel, context: str, continuation: str, lengths: Sequence[float] = ()) -> Request:
    """Return the request for the likelihood of a continuation after a context, both given as text.

    Trailing spaces of the context count as part of the continuation, as in the text that the model was trained on. An empty
    context is replaced by the model's prefix token.
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
    """Return the request for the likelihood of a whole text after the prefix token."""
    return pair_request(opened, "", text)


def rolling_requests(opened: OpenModel, text: str) -> list[Request]:
    """Return requests that predict each token of a text once, in windows of the model's context; the last window is full."""
    tokens, longest = encode(opened, text), opened.max_length
    requests = [Request((opened.prefix,), tuple(tokens[:longest]))] if tokens else []
    for begin in range(longest, len(tokens), longest):
        end = min(begin + longest, len(tokens))
        requests.append(Request(tuple(tokens[end - longest - 1 : begin]), tuple(tokens[begin:end])))
    return requests
