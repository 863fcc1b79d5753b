"""The layers of cluster/: every import runs downward, also those inside functions and under TYPE_CHECKING."""

import pytest

from tests.test_floors import imports, modules

LAYERS = [
    {"agent", "backends"},
    {"engines"},
    {"supervise"},
    {"process"},
    {"run"},
    {"config", "storage", "gpus", "fresh_reads"},
    {"errors", "spec", "text"},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}


def room(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("layer", range(len(LAYERS)))
def test_imports_run_downward(layer: int) -> None:
    known = {name: path for name, path in modules().items() if name.startswith("cluster.")}
    wrong = [
        f"{name} imports {other}"
        for name, path in known.items()
        if LEVEL[room(name)] == layer
        for other in imports(path) & known.keys()
        if room(other) != room(name) and LEVEL[room(other)] < layer
    ]
    assert wrong == []


def test_every_room_has_a_layer() -> None:
    assert {room(name) for name in modules() if name.startswith("cluster.")} == set(LEVEL)
