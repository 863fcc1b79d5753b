"""The review page as HTML: whatever an answer holds is shown as text, and nothing comes from another place."""

from collections.abc import Sequence
from html import escape as escape_html
from typing import NamedTuple

from ropewalk.jobs.serving.feedback.review.agreement import Agreement
from ropewalk.jobs.serving.feedback.review.items import Item, Said, Side
from ropewalk.jobs.serving.feedback.review.judgements import text_of
from ropewalk.jobs.serving.feedback.review.session import Progress

_ROLES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
_EARLIER = 2  # messages at the end of a prompt that are shown open; those before them are folded


class Viewer(NamedTuple):
    """Whose page it is."""

    run: str
    reviewer: str
    progress: Progress
    csrf: str  # what only a page of this server can send back


def item_page(viewer: Viewer, item: Item, note: str = "") -> str:
    """The page on which one item is judged."""
    left, right = item.sides(viewer.reviewer)
    cards = _card("left", "Left" if right else "Answer", left) + (_card("right", "Right", right) if right else "")
    body = f"""
<section class="prompt" aria-label="Conversation">{_prompt(item.prompt)}</section>
<form method="post" action="/judge" id="judge">
<input type="hidden" name="csrf" value="{escape(viewer.csrf)}"><input type="hidden" name="item" value="{escape(item.id)}">
<div class="answers{"" if right else " single"}">{cards}</div>
{f'<p class="note">{escape(note)}</p>' if note else ""}
<div class="bar">{_buttons(right is not None)}</div>
</form>
<form method="post" action="/undo" id="undo"><input type="hidden" name="csrf" value="{escape(viewer.csrf)}"></form>"""
    return _page(viewer, body)


def done_page(viewer: Viewer, agreements: Sequence[Agreement], files: Sequence[str]) -> str:
    """The page when nothing is left, or there was nothing."""
    progress = viewer.progress
    if not progress.total:
        words = "<p>Nothing to review yet: this run has captured no answers. Reload this page when it has.</p>"
    else:
        listed = "".join(f"<li><code>{escape(file)}</code></li>" for file in files)
        words = f"<p>Everything is judged. Pairs for <b>align</b> and conversations for <b>finetune</b>:</p><ul>{listed}</ul>"
    words += "".join(f"<p>{escape(sentence)}</p>" for sentence in map(agreement_words, agreements))
    undo = f"""<form method="post" action="/undo" id="undo"><input type="hidden" name="csrf" value="{escape(viewer.csrf)}">
<button class="quiet" data-key="u">Undo the last one <kbd>U</kbd></button></form>"""
    return _page(viewer, f'<section class="done"><h1>Done</h1>{words}{undo if progress.judged else ""}</section>')


def refusal_page(words: str) -> str:
    """A page that says why a request is refused."""
    return _page(None, f'<section class="done"><h1>Not here</h1><p>{escape(words)}</p></section>')


def agreement_words(found: Agreement) -> str:
    """Two reviewers' agreement in a sentence."""
    one, other = found.reviewers
    equal = found.equal
    chance = "" if found.kappa is None else f"; Cohen's kappa {found.kappa:.2f}"
    return (
        f"{one} and {other} said the same of {equal.value or 0:.0%} of {equal.n} items"
        f" (95%: {equal.low or 0:.0%} to {equal.high or 0:.0%}{chance})"
    )


def escape(text: str) -> str:
    """Any text as HTML; a null byte, which browsers drop or replace as they like, as the sign for what cannot be shown."""
    return escape_html(text.replace("\0", "\ufffd"))


def _prompt(prompt: Said) -> str:
    if isinstance(prompt, str):
        return _turn("Prompt", prompt, "user")
    turns = [_turn(_ROLES.get(str(m.get("role")), "Other"), text_of([m]), str(m.get("role"))) for m in prompt]
    folded = turns[:-_EARLIER]
    before = f"<details><summary>{len(folded)} earlier messages</summary>{''.join(folded)}</details>" if folded else ""
    return before + "".join(turns[-_EARLIER:])


def _turn(name: str, text: str, role: str) -> str:
    kind = role if role in _ROLES else "other"
    return f'<div class="turn {kind}"><span class="role">{escape(name)}</span><div class="text">{escape(text)}</div></div>'


def _card(place: str, name: str, side: Side) -> str:
    text = text_of(side.answer)
    key = "E" if place == "left" else "R"
    return f"""<article class="card" id="{place}"><header>{name}</header><div class="text">{escape(text)}</div>
<details class="correct"><summary data-key="{key.lower()}">Correct <kbd>{key}</kbd></summary>
<textarea name="correction_{place}" rows="8" aria-label="Correction of the {place} answer">{_area(text)}</textarea>
<button name="save" value="{place}" class="save">Save the correction <kbd>Ctrl</kbd> <kbd>Enter</kbd></button>
</details></article>"""


def _area(text: str) -> str:
    """The content of a textarea; a browser drops its first line break."""
    return "\n" + escape(text)


def _buttons(pair: bool) -> str:
    words: list[tuple[str, str, str, str]] = (
        [("left", "1", "Left is better", "strong"), ("right", "2", "Right is better", "strong"), ("both", "3", "Both good", "")]
        if pair
        else [("left", "1", "Good", "strong"), ("right", "2", "Bad", "strong")]
    )
    words += [("neither", "4", "Both bad", "")] if pair else []
    words += [("skip", "s", "Skip", "quiet")]
    made = "".join(
        f'<button name="choice" value="{value}" data-key="{key}" class="{kind}">{name} <kbd>{key.upper()}</kbd></button>'
        for value, key, name, kind in words
    )
    return made + '<button form="undo" data-key="u" class="quiet">Undo <kbd>U</kbd></button>'


def _page(viewer: Viewer | None, body: str) -> str:
    head, count = "", ""
    if viewer is not None:
        judged, total, corrected = viewer.progress
        count = f"{judged} of {total}{f' · {corrected} corrected' if corrected else ''}"
        head = f"""<header class="top"><b>{escape(viewer.run)}</b><span class="count">{count}</span>
<progress value="{judged}" max="{max(total, 1)}" aria-label="Judged"></progress>
<span class="who">{escape(viewer.reviewer)}</span></header>"""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Review{f" · {count}" if count else ""}</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="/page.css"><script src="/page.js" defer></script></head>
<body>{head}<main>{body}</main></body></html>
"""
