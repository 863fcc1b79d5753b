"""Values that ranks exchange are data: nothing that a peer sends is unpickled."""

import re
from pathlib import Path

import pytest
from pydantic_core import PydanticSerializationError

import ropewalk
from ropewalk.cluster.process.ports import free_port
from ropewalk.sharding.group import process_group
from tests.fork_server import SERVER
from tests.sharding.exchange_rank import PREFIX, rank_main


def test_ranks_exchange_values_and_errors_without_pickles_behind_a_secret_prefix(tmp_path: Path) -> None:
    port = free_port("127.0.0.1")
    processes = [SERVER.Process(target=rank_main, args=(rank, 3, port, tmp_path)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    keys = (tmp_path / "keys").read_text().splitlines()
    assert len([key for key in keys if key.startswith(f"{PREFIX}/")]) == 3, "the address of each rank"
    others = {key for key in keys if not key.startswith((f"{PREFIX}/", "looked/"))}
    assert others <= {"init/"}


def test_a_value_that_json_does_not_restore_is_an_error_at_its_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with process_group() as group, pytest.raises(PydanticSerializationError):
        group.broadcast_object(object())


def test_no_module_lets_torch_exchange_objects() -> None:
    parts = Path(ropewalk.__file__).parent.iterdir()
    modules = [path for part in parts for path in part.resolve().glob("**/*.py")]
    assert len(modules) > 100
    calls = re.compile(r"\b(dist|torch\.distributed)\.\w*object\w*\(")
    assert [path for path in modules if calls.search(path.read_text())] == []
