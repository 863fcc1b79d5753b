"""An HTML page with the first conversations of a run, which distinguishes trained tokens from context."""

from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ropewalk.cluster.storage import StoragePath
from ropewalk.jobs.results.readable import write_table
from ropewalk.jobs.training.finetune.source import ConversationSource

SAMPLES = 10
_PAGE = """<!doctype html><meta charset="utf-8"><title>Trained tokens</title><style>
body{{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;color:#1f2933}}
pre{{white-space:pre-wrap;background:#f5f7fa;padding:1em;border-radius:6px;font-size:13px}}
.masked{{color:#9aa5b1}}.trained{{color:#1f2933;background:#d9f2e3}}h2{{font-size:1em;margin:1.5em 0 .3em}}
</style><h1>Trained tokens</h1>
<p>The first {count} conversations of the run, as the model reads them. <span class="trained">Green</span> tokens count for the
loss, <span class="masked">grey</span> ones are context.</p>
{samples}
"""


def write_samples(path: Path, source: ConversationSource, tokenizer: StoragePath) -> None:
    """Write the page, unless it exists."""
    if path.is_file():
        return
    encoder = Tokenizer.from_str(tokenizer.read("tokenizer.json").decode())
    numbers = [number for position in range(min(SAMPLES, len(source.packs))) for number in source.packs[position]][:SAMPLES]
    shown = [_sample(source, number, encoder) for number in numbers]
    rows = [_row(source, number, encoder) for number in numbers]
    write_table(path.parent, "chats", ("conversation", "tokens", "trained tokens", "context", "trained"), rows)
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(_PAGE.format(count=len(shown), samples="\n".join(shown)))
    unfinished.rename(path)


def _row(source: ConversationSource, number: int, encoder: Tokenizer) -> list[object]:
    """Return a conversation as a row of a table: context and trained text, each in pieces."""
    index = source.index_of(number)
    tokens, learnt = source.conversations[index]
    parts: dict[bool, list[str]] = {False: [], True: []}
    for start, stop in pairwise([0, *(np.flatnonzero(np.diff(learnt.astype(np.int8))) + 1).tolist(), len(tokens)]):
        parts[bool(learnt[start])].append(encoder.decode(tokens[start:stop].tolist(), skip_special_tokens=False))
    read, trained = ("\n\n".join(parts[side]) for side in (False, True))
    return [source.conversations.name(index), len(tokens), int(learnt.sum()), read, trained]


def _sample(source: ConversationSource, number: int, encoder: Tokenizer) -> str:
    index = source.index_of(number)
    tokens, learnt = source.conversations[index]
    tokens, learnt = tokens[: source.seq_len + 1], learnt[: source.seq_len + 1]
    borders = [0, *(np.flatnonzero(np.diff(learnt.astype(np.int8))) + 1).tolist(), len(tokens)]
    pieces = []
    for start, stop in pairwise(borders):
        text = escape(encoder.decode(tokens[start:stop].tolist(), skip_special_tokens=False))
        pieces.append(f'<span class="{"trained" if learnt[start] else "masked"}">{text}</span>')
    name = escape(source.conversations.name(index))
    return f"<h2>{name}: {int(learnt.sum())} of {len(tokens)} tokens count for the loss</h2><pre>{''.join(pieces)}</pre>"
