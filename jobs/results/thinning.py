"""Curves with few points, for pages: a thinned curve from all its values, and a sparkline from a few places of a file."""

import os
from collections.abc import Sequence

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import TAIL_BYTES, parse_lines

_BLOCK_BYTES = 1 << 12  # some lines of metrics


def thinned(steps: Sequence[int], values: Sequence[float], num_points: int) -> tuple[list[int], list[float]]:
    """Return about `num_points` points of a curve: its ends, and the least and greatest of equal parts, so that peaks stay."""
    count, num_parts = len(steps), num_points // 2
    if count <= num_points:
        return list(steps), list(values)
    chosen = {0, count - 1}
    for part in range(num_parts):
        begin, end = part * count // num_parts, (part + 1) * count // num_parts
        inside = values[begin:end]
        chosen |= {begin + inside.index(min(inside)), begin + inside.index(max(inside))}
    indices = sorted(chosen)
    return [steps[index] for index in indices], [values[index] for index in indices]


def sparkline(run: RunDir, key: str, num_points: int) -> list[float]:
    """Return values of a metric at evenly spread places of its file; of a long file only these places are read."""
    pattern = f'"{key}":'.encode()
    try:
        descriptor = os.open(run.metrics, os.O_RDONLY)
    except FileNotFoundError:
        return []
    try:
        size = os.fstat(descriptor).st_size
        if size <= TAIL_BYTES:
            whole = [line for line in os.pread(descriptor, size, 0).split(b"\n")[:-1] if pattern in line]
            few = (
                [whole[(len(whole) - 1) * part // num_points] for part in range(num_points + 1)]
                if len(whole) > num_points
                else whole
            )
        else:
            ends = [max(_BLOCK_BYTES, size * part // num_points) for part in range(1, num_points + 1)]
            few = [_last_line(os.pread(descriptor, _BLOCK_BYTES, end - _BLOCK_BYTES), pattern) for end in ends]
    finally:
        os.close(descriptor)
    lines = parse_lines(b"".join(line + b"\n" for line in few))[0]
    return [float(line[key]) for line in lines if isinstance(line.get(key), int | float)]


def _last_line(block: bytes, pattern: bytes) -> bytes:
    """Return the last complete line that contains the pattern; empty if there is none."""
    begin = block.rfind(b"\n", 0, max(0, block.rfind(pattern, 0, block.rfind(b"\n")))) + 1
    return block[begin : block.find(b"\n", begin)] if begin else b""
