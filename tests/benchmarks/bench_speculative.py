"""Speculative decoding in llama.cpp's server: a draft model guesses, the model checks; tokens a second, greedy text identical.

    python -m tests.benchmarks.bench_speculative [--target F16] [--draft Q4_K] [--draft-model DIR] [--n-max 2,4] [--tokens 64]

One JSON object. The draft is the model itself in another number format, or another model of the same tokenizer, such as one that
was pruned and distilled. Both run on one thread, one request at a time, in a process of its own each. `--tiny`: a tiny model.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPTS = (
    "The history of the town begins in the twelfth century, when",
    "def fibonacci(n):\n",
    "Water boils at a lower temperature on a mountain because",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="F16", help="number format of the model")
    parser.add_argument("--draft", default="Q4_K", help="number format of the draft")
    parser.add_argument("--draft-model", default=None, help="another model for the draft")
    parser.add_argument("--n-max", default="2,4", help="tokens that the draft guesses at once")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--serve", nargs=3, metavar=("TARGET", "DRAFT", "N"), help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.serve:
        print(json.dumps(answer(words.serve[0], words.serve[1], int(words.serve[2]), words.tokens)))
        sys.stdout.flush()
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), words), indent=1))


def measure(folder: Path, words: argparse.Namespace) -> dict[str, Any]:
    from jobs.formats.gguf import gguf_of
    from tests.jobs.tiny import tiny_model
    from tests.real_data import smollm2

    model = tiny_model(folder / "model") if words.tiny else smollm2()
    target = gguf_of(model, words.target)
    draft = gguf_of(words.draft_model or model, words.draft)
    plain = _asked(target, "-", 0, words.tokens)
    rows = {"plain": {key: plain[key] for key in ("tokens_per_second", "tokens_per_cpu_second")}}
    for count in map(int, words.n_max.split(",")):
        found = _asked(target, str(draft), count, words.tokens)
        identical = found.pop("texts") == plain["texts"]
        ratio = round(found["tokens_per_second"] / plain["tokens_per_second"], 2)
        rows[f"draft of {count}"] = {**found, "times_plain": ratio, "identical": identical}
    return {"model": model.name, "target": words.target, "draft": words.draft_model or f"itself, {words.draft}", "rows": rows}


def _asked(target: Path, draft: str, count: int, tokens: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_speculative", "--serve", str(target), draft, str(count)]
    done = subprocess.run([*command, "--tokens", str(tokens)], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def answer(target: str, draft: str, count: int, tokens: int) -> dict[str, Any]:
    import xllamacpp

    wanted = xllamacpp.CommonParams()
    wanted.model.path, wanted.n_parallel, wanted.n_ctx, wanted.cache_ram_mib, wanted.verbosity = target, 1, 512, 0, 0
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = 1
    if count:
        speculative = wanted.speculative
        speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        speculative.draft.mparams.path, speculative.draft.n_max = draft, count
        speculative.draft.cpuparams.n_threads = speculative.draft.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(wanted)
    texts, seconds, cpu, drafted, accepted, made = [], 0.0, time.process_time(), 0, 0, 0
    for prompt in PROMPTS:
        said = server.handle_completions({"prompt": prompt, "max_tokens": tokens, "temperature": 0, "seed": 1})
        timings = said["timings"]
        texts.append(said["choices"][0]["text"])
        seconds, made = seconds + timings["predicted_ms"] / 1e3, made + timings["predicted_n"]
        drafted, accepted = drafted + timings.get("draft_n", 0), accepted + timings.get("draft_n_accepted", 0)
    spent = time.process_time() - cpu
    return {
        "texts": texts,
        "tokens_per_second": round(made / seconds, 2),
        "tokens_per_cpu_second": round(made / spent, 2),  # prompts included
        "accepted": round(accepted / drafted, 3) if drafted else None,
    }


if __name__ == "__main__":
    main()
