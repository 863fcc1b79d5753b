"""Memory, files and messages grow no faster with the number of ranks than promised: the real code on simulated ranks."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.bench_growth import CONSTANT, LAWS, LINEAR, LOGARITHMIC, is_lawful, measure_all
from tests.fork_server import SERVER

FEW, MANY = (8, 128), (8, 4096)


def measure(path: Path, sizes: tuple[int, ...]) -> None:
    """Measure in a process of its own, which forms groups and imports torch."""
    path.write_text(json.dumps(measure_all(sizes)))


@pytest.mark.soak(
    "up to 4096 ranks; test_of_a_thousand_pods_few_list_the_others_and_the_lowest_living_leads_on has a thousand pods"
)
@pytest.mark.parametrize("sizes", [FEW, MANY])
def test_nothing_grows_faster_than_its_law(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    process = SERVER.Process(target=measure, args=(tmp_path / "rows.json", sizes))
    process.start()
    process.join()
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) > 7
    assert [(name, values) for name, values in rows.items() if not is_lawful(LAWS[name], sizes, values)] == []


@pytest.mark.parametrize(
    ("law", "lawful", "unlawful"),
    [
        (CONSTANT, [10, 10.5, 9], [10, 10, 12]),
        (LOGARITHMIC, [9, 11, 14], [9, 11, 27]),
        (LINEAR, [5, 40, 300], [5, 40, 2600]),
    ],
)
def test_what_grows_faster_is_noticed(law: str, lawful: list[float], unlawful: list[float]) -> None:
    assert is_lawful(law, (8, 64, 512), lawful)
    assert not is_lawful(law, (8, 64, 512), unlawful)
