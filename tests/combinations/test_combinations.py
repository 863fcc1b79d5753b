"""Every pair of options trains the same model on four ranks and on one, or is refused before anything starts."""

from pathlib import Path

import pytest

from tests.combinations.options import OPTIONS, all_choices
from tests.combinations.table import PAGE, measure, page, problem_of, refused_pairs
from tests.torchao import needs_torchao


def test_the_page_lists_the_options() -> None:
    names = list(OPTIONS)
    rows = [line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert "| | " + " | ".join(names[1:]) + " |" in PAGE.read_text(), "write it with python -m tests.combinations"
    assert set(names) <= set(rows)


def test_there_are_many_pairs_and_each_refusal_is_a_sentence() -> None:
    assert len(OPTIONS) * (len(OPTIONS) - 1) // 2 >= 90
    assert all(len(reason.split()) >= 4 for reason in refused_pairs().values())


@pytest.mark.soak("every pair on four ranks and on one, some minutes; each option has tests of its own")
@pytest.mark.slow
@needs_torchao
@pytest.mark.timeout(3600)
def test_every_pair_is_equal_on_four_ranks_and_on_one(tmp_path: Path) -> None:
    many, single = measure(tmp_path)
    refused = refused_pairs()
    problems = {choice: problem_of(choice, many, single) for choice in all_choices() if choice not in refused}
    assert not {choice: problem for choice, problem in problems.items() if problem}
    assert PAGE.read_text() == page(many, single), "write it with python -m tests.combinations"
