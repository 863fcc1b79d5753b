"""Speed and memory of a variant in a process of its own: time to the first token, time per further token, memory.

Usage: python -m ropewalk.jobs.models.compress.timing ENGINE PATH PROMPT_TOKENS NEW_TOKENS REPEATS THREADS; prints one JSON
line. ENGINE is transformers or llama.cpp.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.command import module_command

if TYPE_CHECKING:  # the process measures its own memory, so it imports only what its engine needs
    from ropewalk.jobs.models.compress.artifacts import Artifact
    from ropewalk.jobs.models.compress.config import TimingConfig

Step = Callable[[list[int], int], int]  # (tokens, position of the first) → the likeliest next token


def measure_timing(artifact: "Artifact", timing: "TimingConfig") -> dict[str, float]:
    """Measure a variant: times in ms of wall clock and CPU, memory in bytes. Raises ConfigError if its process fails."""
    arguments = [artifact.engine, str(artifact.path), timing.prompt_tokens, timing.new_tokens, timing.repeats, timing.threads]
    command = module_command("ropewalk.jobs.models.compress.timing", *map(str, arguments))
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = result.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ConfigError(f"{artifact.path.name}: its timing ended with {result.returncode}: {reason[0][:300]}")
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Measure the variant on the command line."""
    engine, path, *numbers = sys.argv[1:]
    prompt_tokens, new_tokens, repeats, threads = map(int, numbers)
    began = time.perf_counter()
    open_engine = _llama_cpp if engine == "llama.cpp" else _transformers
    step, clear = open_engine(Path(path), prompt_tokens + new_tokens, threads)
    loaded = time.perf_counter() - began
    prompt = [token % 200 + 3 for token in range(prompt_tokens)]
    rounds = []
    for number in range(repeats + 1):
        clear()
        times = _round(step, prompt, new_tokens)
        if number:  # the first round is a warm-up
            rounds.append(times)
    medians = {key: statistics.median(entry[key] for entry in rounds) for key in rounds[0]}
    sys.stdout.write(json.dumps({**medians, "rss": psutil.Process().memory_info().rss, "load_seconds": loaded}) + "\n")


def _round(step: Step, prompt: list[int], new_tokens: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    token = step(prompt, 0)
    first = {"first_token_ms": (time.perf_counter() - wall) * 1e3, "first_token_cpu_ms": (time.process_time() - cpu) * 1e3}
    wall, cpu = time.perf_counter(), time.process_time()
    for position in range(len(prompt), len(prompt) + new_tokens):
        token = step([token], position)
    return {
        **first,
        "per_token_ms": (time.perf_counter() - wall) * 1e3 / new_tokens,
        "per_token_cpu_ms": (time.process_time() - cpu) * 1e3 / new_tokens,
    }


def _llama_cpp(path: Path, context: int, threads: int) -> tuple[Step, Callable[[], None]]:
    from ropewalk.jobs.inference.gguf.llama_cpp import LlamaCpp

    engine = LlamaCpp(path, context=context, threads=threads)
    return (lambda tokens, start: int(engine.logits(tokens, start).argmax())), engine.clear


def _transformers(path: Path, context: int, threads: int) -> tuple[Step, Callable[[], None]]:
    import torch
    from transformers import DynamicCache

    from ropewalk.jobs.models.compress.artifacts import open_directory

    torch.set_num_threads(threads)
    model = open_directory(path)
    state: dict[str, Any] = {}

    def clear() -> None:
        state["cache"] = DynamicCache(config=model.config)

    @torch.no_grad()
    def step(tokens: list[int], start: int) -> int:
        output = model(input_ids=torch.tensor([tokens]), past_key_values=state["cache"], use_cache=True, logits_to_keep=1)
        return int(output.logits[0, -1].argmax())

    return step, clear


if __name__ == "__main__":
    main()
