"""Speculative decoding in the engines that serve: a smaller model guesses, the model checks; tokens a second, text identical.

    python -m tests.benchmarks.bench_speculative --kept DIR [--size small|smollm2|tiny] [--engines llamacpp:F32]
        [--layers 2] [--steps 200] [--most 2,3,4] [--tokens 96] [--rounds 3]

The draft is cut out of the model (`--layers` of its layers) and distilled by `--steps` steps. `smollm2` is SmolLM2-135M-Instruct;
`small` is the preset with bytes as tokens, trained here first (`--teacher-steps`), as bench_distill has it: with the same --kept
the two share it. An engine with and without draft are up side by side, and are asked in turn, one request at a time, on one
thread each; a ratio is that of neighbours. Prints one JSON object; each row is told on stderr. Ended at any moment and begun
again with the same --kept, it goes on where it was.

Measured: Text is identical in all rows. SmolLM2: 2026-11-27, another program on the second core, a draft of 10 layers
distilled by 46,080 tokens, 2 guesses; by hand, llama.cpp in F32, a quiet machine: 22 layers in Q4_K 0.78 and 0.72, the model
itself in Q4_K 0.97 and 0.94 (2 and 3 guesses). On this CPU (AVX2) a pass of more tokens saves little: 1 to 4 tokens take 22,
31, 35, 59 ms in llama.cpp in F16. `small`: 2026-11-28, 60 steps, 2.53 nats a byte, a draft of 1 of 6 layers, 122,880 tokens;
2 and 3 guesses 1.29 and 1.58. GPUs are not measured.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.inference.engines.engine import EngineOptions
from ropewalk.jobs.inference.engines.find import find_engine
from ropewalk.jobs.inference.engines.process import EngineProcess
from ropewalk.jobs.results.statistics import mean_error
from ropewalk.jobs.training.loop.weights.export import export
from tests.benchmarks.bench_compress import material
from tests.benchmarks.bench_distill import data_and_teacher, finished, kept_run, student_config, texts
from tests.jobs.inference.engines.streams import COMPLETIONS, events
from tests.patience import HANG_SECONDS

PROMPTS = (
    "The history of the town begins in the twelfth century, when",
    "def fibonacci(n):\n",
    "Water boils at a lower temperature on a mountain because",
)
HELD_OUT, PROMPT_CHARACTERS = 8, 120  # of the texts that `small` has not learnt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["small", "smollm2", "tiny"], default="small")
    parser.add_argument("--engines", default="llamacpp:F32", help="each with its number format, where it has one")
    parser.add_argument("--layers", type=int, default=2, help="layers of the draft")
    parser.add_argument("--steps", type=int, default=200, help="steps by which it is distilled")
    parser.add_argument("--most", default="2,3,4", help="tokens that the draft guesses at once")
    parser.add_argument("--tokens", type=int, default=96, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kept", type=Path, default=None, help="keep models and rows here, and go on with what is there")
    parser.add_argument("--teacher-steps", type=int, default=300)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--sequences", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options.kept or Path(folder), options), indent=1))


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All rows, those that are kept as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    model, data, prompts = _model(folder, arguments)
    draft = _draft(folder, model, data, arguments)
    rows = {}
    for engine in arguments.engines.split(","):
        for most in map(int, arguments.most.split(",")):
            rows[f"{engine}, {most} at once"] = _row(folder, (engine, most), (model, draft), prompts, arguments)
    return {"asked": {key: str(value) for key, value in vars(arguments).items()}, "rows": rows}


def _model(folder: Path, arguments: argparse.Namespace) -> tuple[Path, Path, list[str]]:
    """The model's directory, what its draft learns from, and what both are asked."""
    if arguments.size != "small":
        model, data = material(folder, tiny=arguments.size == "tiny")
        return model, data, list(PROMPTS)
    data, run = data_and_teacher(folder, arguments)
    return _exported(Path(run), folder / "model"), data, [text[:PROMPT_CHARACTERS] for text in texts()[-HELD_OUT:]]


def _draft(folder: Path, model: Path, data: Path, arguments: argparse.Namespace) -> Path:
    """The draft's directory; what was begun is resumed."""
    name = f"draft-{arguments.size}-{arguments.layers}-{arguments.steps}"
    config = student_config(str(model), {"layers": arguments.layers}, data, arguments)
    run = kept_run(folder, name, {"job": "distill", "entry": "ropewalk.jobs.training.distill.job:main", "config": config})
    finished(run, name)
    return _exported(run.path, folder / name)


def _exported(run: Path, folder: Path) -> Path:
    if not (folder / "config.json").exists():
        export(RunDir(run), folder)
    return folder


def _row(
    folder: Path, way: tuple[str, int], models: tuple[Path, Path], prompts: list[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """A row, of the file that keeps them or measured now."""
    file, key = folder / "rows.jsonl", f"{models[1].name}|{way[0]}|{way[1]}|{arguments.tokens}|{arguments.rounds}"
    remaining = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for item in remaining:
        if item["key"] == key:
            return dict(item["row"])
    row = _asked(folder, way, models, prompts, arguments)
    with file.open("a") as out:
        out.write(json.dumps({"key": key, "row": row}) + "\n")
    print(f"{key}: {row}", file=sys.stderr, flush=True)
    return row


def _asked(
    folder: Path, way: tuple[str, int], models: tuple[Path, Path], prompts: list[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    name, _, form = way[0].partition(":")
    engine = find_engine(name)
    extra = {"type": form} if form else {}
    plain = EngineOptions(threads=1, slots=1, name="model", extra=extra)
    drafted = EngineOptions(threads=1, slots=1, name="model", extra=extra, draft=models[1], draft_tokens=way[1])
    rates: dict[str, list[float]] = {"plain": [], "drafted": []}
    same = True
    with (
        EngineProcess.start(engine, models[0], plain, folder / "plain.log") as start,
        EngineProcess.start(engine, models[0], drafted, folder / "drafted.log") as other,
    ):
        for each in (start, other):
            each.await_ready(HANG_SECONDS)
        for _ in range(arguments.rounds):
            for prompt in prompts:
                first, message = _rate(start, prompt, arguments.tokens)
                second, said_too = _rate(other, prompt, arguments.tokens)
                rates["plain"].append(first)
                rates["drafted"].append(second)
                same = same and message == said_too
    ratios = [second / first for first, second in zip(rates["plain"], rates["drafted"], strict=True)]
    return {
        "times_plain": round(mean(ratios), 3),
        "standard_error": round(mean_error(ratios) or 0.0, 3),
        "tokens_a_second": {side: round(mean(rate), 1) for side, rate in rates.items()},
        "identical": same,
    }


def _rate(engine: EngineProcess, prompt: str, tokens: int) -> tuple[float, str]:
    """Tokens a second of a whole answer, its prompt included, and the text."""
    request = {"model": "model", "prompt": prompt, "temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    begin = time.perf_counter()
    result = events(engine, COMPLETIONS, {**request, "return_token_ids": True})
    seconds = time.perf_counter() - begin
    return sum(len(event.tokens) for event in result) / seconds, "".join(event.text for event in result)


if __name__ == "__main__":
    main()
