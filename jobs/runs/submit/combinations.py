"""Parsing of `--each KEY=VALUES` into the overrides of each run of a submission."""

import itertools
import json
import math
import re
from collections.abc import Sequence

from ropewalk.cluster.config_reader import apply_override, parse_yaml
from ropewalk.cluster.errors import ConfigError

MAX_RUNS = 10_000


def combinations(arguments: Sequence[str]) -> list[tuple[str, ...]]:
    """Combine the values of all keys into the overrides of each run, the last key varying fastest. Raises ConfigError.

    Values are an inclusive range of integers `1..8`, a list `a,b,c`, or a YAML list `[a, b, c]`.
    """
    axes: dict[str, Sequence[str]] = {}
    for argument in arguments:
        key, separator, text = argument.partition("=")
        if not separator or not text.strip():
            raise ConfigError(f"--each {argument}: write KEY=VALUES, such as seed=1..8 or optim.lr=1e-3,1e-4")
        if key in axes:
            raise ConfigError(f"--each {argument}: {key} occurs twice; write its values as one list")
        apply_override({}, f"{key}=")  # checks the key
        if key.partition(".")[0] == "resources":
            raise ConfigError(f"--each {argument}: runs of one submission share their resources; submit them one by one")
        axes[key] = _values(argument, text.strip())
    count = math.prod(len(values) for values in axes.values())
    if count > MAX_RUNS:
        raise ConfigError(f"--each makes {count:,} runs, but the limit of one submission is {MAX_RUNS:,}; split it")
    keyed = [[f"{key}={value}" for value in values] for key, values in axes.items()]
    return list(itertools.product(*keyed))


def _values(argument: str, text: str) -> Sequence[str]:
    span = re.fullmatch(r"([+-]?\d+)\.\.([+-]?\d+)", text)
    if span:
        first, last = int(span[1]), int(span[2])
        if last < first:
            raise ConfigError(f"--each {argument}: the range is descending; write {last}..{first}")
        if last - first >= MAX_RUNS:
            raise ConfigError(
                f"--each {argument}: {last - first + 1:,} values, but the limit of one submission is {MAX_RUNS:,} runs; split it"
            )
        return [str(value) for value in range(first, last + 1)]
    values = parse_yaml(f"values: [{text}]", f"--each {argument}")["values"]
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]  # the user wrote the brackets
    if not values:
        raise ConfigError(f"--each {argument}: no values; write KEY=VALUES, such as seed=1..8")
    return [json.dumps(value, default=str) for value in values]
