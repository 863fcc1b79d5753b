"""Made texts about subjects, which differ as those of people do: words in common, words of their own."""

import random

COMMON = ("the", "a", "of", "to", "and", "in", "how", "do", "i", "what", "is", "my", "for", "on", "can", "you", "please", "it")
SUBJECTS = {
    "ropes": ("rope", "strand", "hemp", "twist", "tar", "knot", "sail", "mast", "anchor", "deck", "harbour", "splice"),
    "bread": ("flour", "yeast", "oven", "crust", "knead", "dough", "salt", "water", "rise", "loaf", "butter", "bake"),
    "stars": ("orbit", "planet", "comet", "telescope", "galaxy", "dust", "moon", "eclipse", "lens", "night", "gravity"),
}


def asked(subject: str, count: int, seed: int, num_words: int = 12) -> list[str]:
    """Questions about a subject, and now and then about another."""
    draw = random.Random(f"{subject}{seed}")
    results = []
    for _ in range(count):
        vocabulary = SUBJECTS[subject if draw.random() < 0.9 else draw.choice(sorted(SUBJECTS))]
        length = draw.randint(num_words // 2, 2 * num_words)
        results.append(" ".join(draw.choice(vocabulary if draw.random() < 0.4 else COMMON) for _ in range(length)))
    return results
