"""Speed and memory of one variant, in a process of its own: time to the first token, time a token after it, memory.

Usage: python -m ropewalk.jobs.models.compress.timing ENGINE PATH PROMPT_TOKENS NEW_TOKENS REPEATS THREADS; prints one JSON
line. ENGINE is
transformers or llama.cpp.
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

if TYPE_CHECKING:  # the process measures its own memory: it loads what its engine needs, and no more
    from ropewalk.jobs.models.compress.artifacts import Artifact
    from ropewalk.jobs.models.compress.config import TimingConfig

Step = Callable[[list[int], int], int]  # (tokens, place of the first of them) → the likeliest token that follows


def timed(artifact: "Artifact", timing: "TimingConfig") -> dict[str, float]:
    """Measure a variant; times in ms of wall clock and of CPU, memory in bytes. Raises ConfigError where its process fails."""
    words = [artifact.engine, str(artifact.path), timing.prompt_tokens, timing.new_tokens, timing.repeats, timing.threads]
    command = module_command("ropewalk.jobs.models.compress.timing", *map(str, words))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["no word"]
        raise ConfigError(f"{artifact.path.name}: its timing ended with {done.returncode}: {said[0][:300]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure what the command line names."""
    engine, path, *numbers = sys.argv[1:]
    prompt_tokens, new_tokens, repeats, threads = map(int, numbers)
    began = time.perf_counter()
    open_engine = _llama_cpp if engine == "llama.cpp" else _transformers
    step, again = open_engine(Path(path), prompt_tokens + new_tokens, threads)
    loaded = time.perf_counter() - began
    prompt = [token % 200 + 3 for token in range(prompt_tokens)]
    rounds = []
    for number in range(repeats + 1):
        again()
        found = _round(step, prompt, new_tokens)
        if number:  # the first one warms up
            rounds.append(found)
    medians = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
    sys.stdout.write(json.dumps({**medians, "rss": psutil.Process().memory_info().rss, "load_seconds": loaded}) + "\n")


def _round(step: Step, prompt: list[int], new_tokens: int) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    token = step(prompt, 0)
    first = {"first_token_ms": (time.perf_counter() - wall) * 1e3, "first_token_cpu_ms": (time.process_time() - cpu) * 1e3}
    wall, cpu = time.perf_counter(), time.process_time()
    for place in range(len(prompt), len(prompt) + new_tokens):
        token = step([token], place)
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
    kept: dict[str, Any] = {}

    def clear() -> None:
        kept["cache"] = DynamicCache(config=model.config)

    @torch.no_grad()
    def step(tokens: list[int], start: int) -> int:
        done = model(input_ids=torch.tensor([tokens]), past_key_values=kept["cache"], use_cache=True, logits_to_keep=1)
        return int(done.logits[0, -1].argmax())

    return step, clear


if __name__ == "__main__":
    main()
