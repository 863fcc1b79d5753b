"""Evaluation items are found in texts verbatim and with words changed, and never where they are not."""

import random

import pytest

from ropewalk.datapipe.filters.decontamination.index import NgramIndex
from ropewalk.datapipe.text.batch import TextBatch

WORDS = [f"word{number}" for number in range(5000)]
OTHERS = [f"other{number}" for number in range(5000)]


def some_items(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(13, 60))) for _ in range(count)]


def changed(text: str, draw: random.Random, one_in: int = 20) -> str:
    """One word of every `one_in` is another one."""
    arguments = text.split()
    for start in range(0, len(arguments), one_in):
        arguments[draw.randrange(start, min(start + one_in, len(arguments)))] = "changed"
    return " ".join(arguments)


def inside(item: str, draw: random.Random) -> str:
    return f"{' '.join(draw.choices(OTHERS, k=80))}\n\n{item}. {' '.join(draw.choices(OTHERS, k=80))}"


def found_share(items: list[str], texts: list[str]) -> float:
    pairs = {(o.text, o.item) for o in NgramIndex.build(items).overlaps(TextBatch.of(texts))}
    return sum((number, number) in pairs for number in range(len(items))) / len(items)


def test_every_verbatim_item_is_found_and_case_and_punctuation_do_not_count() -> None:
    draw, items = random.Random(1), some_items(400)
    assert found_share(items, [inside(item, draw) for item in items]) == 1
    assert found_share(items, [inside(item.upper().replace(" ", "\u2019, "), draw) for item in items]) == 1


def test_items_with_one_word_in_twenty_changed_are_found() -> None:
    draw, items = random.Random(2), some_items(400)
    assert found_share(items, [inside(changed(item, draw), draw) for item in items]) >= 0.95


def test_disjoint_texts_are_never_accused() -> None:
    draw, items = random.Random(3), some_items(400)
    index = NgramIndex.build(items)
    assert index.overlaps(TextBatch.of([" ".join(draw.choices(OTHERS, k=500)) for _ in range(200)])) == []
    assert index.overlaps(TextBatch.of([" ".join(draw.choices(WORDS, k=500)) for _ in range(200)])) == []
    shuffled = [" ".join(draw.sample(item.split(), len(item.split()))) for item in items]
    assert index.overlaps(TextBatch.of(shuffled)) == []


def test_twelve_equal_words_are_not_thirteen() -> None:
    item = " ".join(WORDS[:40])
    index = NgramIndex.build([item])
    assert index.matches(" ".join([*OTHERS[:9], *WORDS[5:16], *OTHERS[10:20]])) == []  # 11, and one more may differ
    (first,) = index.matches("Ähem: " + " ".join([*OTHERS[:9], *WORDS[5:18], *OTHERS[10:20]]))
    assert (first.text, first.item, first.num_words) == (0, 0, 13)
    assert first.share == pytest.approx(13 / 40)


def test_short_items_count_as_a_whole_and_the_shortest_are_told() -> None:
    index = NgramIndex.build(
        ["one two three four five six seven eight nine", "too short", ("Is it?", "yes it is", "no it never was")]
    )
    assert index.too_short == 1
    assert [o.item for o in index.matches("so: one two three four five six seven eight nine!")] == [0]
    assert index.matches("so: one two three four five six seven eight ten!") == []
    assert [o.item for o in index.matches("Is it? Yes, it is. No, it never was.")] == [2]


def test_characters_are_the_words_of_chinese_and_japanese() -> None:
    index = NgramIndex.build(["中华人民共和国中央人民政府在北京成立了", "むかしむかしあるところにおじいさんとおばあさんが"])
    assert [o.item for o in index.matches("他说:中华人民共和国,中央人民政府在北京成立了。")] == [0]
    assert [o.item for o in index.matches("むかしむかし、あるところにおじいさんとおばあさんが。")] == [1]


def test_an_empty_index_and_an_empty_batch() -> None:
    assert NgramIndex.build([]).matches("anything") == []
    assert NgramIndex.build(some_items(2)).overlaps(TextBatch.of([])) == []
    assert NgramIndex.build(some_items(2)).overlaps(TextBatch.of([""])) == []
