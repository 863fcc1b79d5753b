"""Documents of which is known which nearly repeat which: clusters of edited copies, among others with nothing in common."""

import random
from typing import Any

VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "ai", "ou") for c in "bdgklmnprstvz"]


def draw_text(draw: random.Random, tokens: int) -> list[str]:
    return draw.choices(VOCABULARY, k=tokens)


def edited(draw: random.Random, arguments: list[str], share: float) -> list[str]:
    """A copy with so many of its words replaced, dropped or doubled."""
    copy = list(arguments)
    for position in sorted(draw.sample(range(len(copy)), max(round(share * len(copy)), 1)), reverse=True):
        kind = draw.randrange(3)
        copy[position : position + 1] = [[draw.choice(VOCABULARY)], [], [copy[position], draw.choice(VOCABULARY)]][kind]
    return copy


def dressed(draw: random.Random, arguments: list[str]) -> str:
    """Words as a text: in sentences, capitals and lines that are no part of what is compared."""
    parts = []
    for number, word in enumerate(arguments):
        mark = draw.choice([" ", " ", " ", ", ", ". ", "\n", " - "])
        parts.append((word.capitalize() if not number % 7 else word) + mark)
    return "".join(parts)


def planted(clusters: int, singles: int, seed: int = 0) -> list[dict[str, Any]]:
    """Shuffled documents `C-K` (copy K of cluster C, each edited anew from the first) and `single-N`."""
    draw = random.Random(seed)
    created = []
    for cluster in range(clusters):
        tokens = draw_text(draw, draw.randint(80, 400))
        created.append({"id": f"{cluster}-0", "text": dressed(draw, tokens)})
        created += [
            {"id": f"{cluster}-{copy}", "text": dressed(draw, edited(draw, tokens, draw.uniform(0.002, 0.03)))}
            for copy in range(1, draw.randint(2, 5))
        ]
    created += [
        {"id": f"single-{single}", "text": dressed(draw, draw_text(draw, draw.randint(5, 400)))} for single in range(singles)
    ]
    draw.shuffle(created)
    return created
