"""Functions of somebody's own module."""

import os

import ropewalk


def add(a: float, b: float = 1) -> dict[str, float]:
    ropewalk.log({"sum": a + b}, step=1)
    return {"sum": a + b, "attempt": ropewalk.run.attempt}


def fail(text: str) -> None:
    raise ValueError(text)


def rank() -> list[int]:
    return [int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])]
