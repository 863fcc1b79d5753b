"""Chunks beside the data verify: a damaged byte is either found or changes nothing."""

from pathlib import Path

import pyarrow as pa
import pytest

from ropewalk.cluster.storage import StoragePath
from ropewalk.jobs.training.loop.chunks import Chunks

TABLES = [
    pa.table({"log_probs": [[-1.5, -2.5], [-3.0, -4.0], [-0.5, -7.0]]}),
    pa.table({"ids": [[1, 2], [3]], "sizes": pa.array([[1], [2]], pa.list_(pa.uint16()))}),
]


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(TABLES[0], id="log_probs"),
        pytest.param(TABLES[1], id="ids", marks=pytest.mark.soak("each byte of another table")),
    ],
)
def test_a_damaged_byte_is_found_or_harmless(table: pa.Table, tmp_path: Path) -> None:
    chunks = Chunks(folder=StoragePath(tmp_path), fingerprint="xxh3:1")
    chunks.write("a.arrow", table)
    content = (tmp_path / "a.arrow").read_bytes()
    damaged = 0
    for number in range(len(content)):
        (tmp_path / "a.arrow").write_bytes(content[:number] + bytes([content[number] ^ 0x55]) + content[number + 1 :])
        read = chunks.read("a.arrow")
        assert read is None or read.equals(table), number
        damaged += read is None
    assert damaged > len(content) // 3
