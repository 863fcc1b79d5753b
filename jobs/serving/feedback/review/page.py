"""The review page as HTML. Answers are shown as escaped text, and nothing is loaded from other hosts."""

from collections.abc import Sequence
from html import escape as escape_html
from typing import NamedTuple

from ropewalk.cluster.text import counted
from ropewalk.jobs.serving.feedback.review.items import Content, Item, Side
from ropewalk.jobs.serving.feedback.review.judgements import Agreement, text_of
from ropewalk.jobs.serving.feedback.review.session import Progress

_ROLES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
_OPEN_MESSAGES = 2  # last messages of a prompt that are shown; earlier ones are folded


class Viewer(NamedTuple):
    """The run, the reviewer and the progress shown on a page."""

    run: str
    reviewer: str
    progress: Progress
    csrf: str  # token that only pages of this server contain


def item_page(viewer: Viewer, item: Item, note: str = "") -> str:
    """Render the page for judging one item."""
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
    """Render the page for a finished or an empty review."""
    progress = viewer.progress
    if not progress.total:
        content = "<p>Nothing to review yet: this run has captured no answers. Reload this page when it has.</p>"
    else:
        listed = "".join(f"<li><code>{escape(file)}</code></li>" for file in files)
        content = f"<p>All items are judged. Pairs for <b>align</b> and conversations for <b>finetune</b>:</p><ul>{listed}</ul>"
    content += "".join(f"<p>{escape(sentence)}</p>" for sentence in map(describe_agreement, agreements))
    undo = f"""<form method="post" action="/undo" id="undo"><input type="hidden" name="csrf" value="{escape(viewer.csrf)}">
<button class="quiet" data-key="u">Undo the last judgement <kbd>U</kbd></button></form>"""
    return _page(viewer, f'<section class="done"><h1>Done</h1>{content}{undo if progress.judged else ""}</section>')


def refusal_page(message: str) -> str:
    """Render a page that explains why a request was refused."""
    return _page(None, f'<section class="done"><h1>Not available</h1><p>{escape(message)}</p></section>')


def describe_agreement(agreement: Agreement) -> str:
    """Describe the agreement of two reviewers in a sentence."""
    first, second = agreement.reviewers
    equal = agreement.equal
    chance = "" if agreement.kappa is None else f"; Cohen's kappa {agreement.kappa:.2f}"
    return (
        f"{first} and {second} agree on {equal.value or 0:.0%} of {equal.n} items"
        f" (95% interval {equal.low or 0:.0%} to {equal.high or 0:.0%}{chance})"
    )


def escape(text: str) -> str:
    """Escape text for HTML; null bytes, which browsers treat differently, become U+FFFD."""
    return escape_html(text.replace("\0", "\ufffd"))


def _prompt(prompt: Content) -> str:
    if isinstance(prompt, str):
        return _turn("Prompt", prompt, "user")
    turns = [_turn(_ROLES.get(str(m.get("role")), "Other"), text_of([m]), str(m.get("role"))) for m in prompt]
    folded = turns[:-_OPEN_MESSAGES]
    before = f"<details><summary>{counted(len(folded), 'earlier message')}</summary>{''.join(folded)}</details>" if folded else ""
    return before + "".join(turns[-_OPEN_MESSAGES:])


def _turn(name: str, text: str, role: str) -> str:
    kind = role if role in _ROLES else "other"
    return f'<div class="turn {kind}"><span class="role">{escape(name)}</span><div class="text">{escape(text)}</div></div>'


def _card(side: str, name: str, shown: Side) -> str:
    text = text_of(shown.answer)
    key = "E" if side == "left" else "R"
    return f"""<article class="card" id="{side}"><header>{name}</header><div class="text">{escape(text)}</div>
<details class="correct"><summary data-key="{key.lower()}">Correct <kbd>{key}</kbd></summary>
<textarea name="correction_{side}" rows="8" aria-label="Correction of the {side} answer">{_area(text)}</textarea>
<button name="save" value="{side}" class="save">Save the correction <kbd>Ctrl</kbd> <kbd>Enter</kbd></button>
</details></article>"""


def _area(text: str) -> str:
    """Return the content of a textarea; browsers drop a leading line break."""
    return "\n" + escape(text)


def _buttons(pair: bool) -> str:
    buttons: list[tuple[str, str, str, str]] = (
        [("left", "1", "Left is better", "strong"), ("right", "2", "Right is better", "strong"), ("both", "3", "Both good", "")]
        if pair
        else [("left", "1", "Good", "strong"), ("right", "2", "Bad", "strong")]
    )
    buttons += [("neither", "4", "Both bad", "")] if pair else []
    buttons += [("skip", "s", "Skip", "quiet")]
    html = "".join(
        f'<button name="choice" value="{value}" data-key="{key}" class="{kind}">{name} <kbd>{key.upper()}</kbd></button>'
        for value, key, name, kind in buttons
    )
    return html + '<button form="undo" data-key="u" class="quiet">Undo <kbd>U</kbd></button>'


def _page(viewer: Viewer | None, body: str) -> str:
    head, title = "", "Review"
    if viewer is not None:
        judged, total, corrected = viewer.progress
        count = f"{judged} of {total}{f' · {corrected} corrected' if corrected else ''}"
        title = f"{escape(viewer.run)} · Review · {count}"
        head = f"""<header class="top"><b>{escape(viewer.run)}</b><span class="count">{count}</span>
<progress value="{judged}" max="{max(total, 1)}" aria-label="Judged"></progress>
<span class="who">{escape(viewer.reviewer)}</span></header>"""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="/review.css"><script src="/page.js" defer></script></head>
<body>{head}<main>{body}</main></body></html>
"""
