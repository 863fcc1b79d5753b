"""Speculative decoding in llama.cpp's server: a draft model guesses, the model checks; tokens a second, greedy text identical.

    python -m tests.benchmarks.bench_speculative --kept DIR [--targets F16,F32] [--drafts Q4_K,Q8_0] [--distil 60] [--layers 6]
        [--n-max 2,3,4] [--tokens 64] [--tiny]

One JSON object: a row for each target without a draft, and with each draft at each number of guesses; `best` of each target. A
draft is the model itself in another number format, or, with --distil STEPS, one of --layers layers that is cut out of it and
distilled here, in Q8_0. All run on one thread, one request at a time, in a process of its own each. Each row and each step is
told on stderr. Ended at any moment and begun again with the same --kept, it goes on where it was. `--tiny`: a tiny model.
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
DISTILLED, DISTILLED_TYPE = "distilled", "Q8_0"
SEQ_LEN = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default="F16,F32", help="number formats of the model")
    parser.add_argument("--drafts", default="Q4_K,Q8_0", help="number formats of the model as its own draft")
    parser.add_argument("--distil", type=int, default=0, help="steps of 512 tokens by which a smaller draft is distilled")
    parser.add_argument("--layers", type=int, default=6, help="layers of the smaller draft")
    parser.add_argument("--n-max", default="2,3,4", help="tokens that the draft guesses at once")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--kept", type=Path, default=None, help="keep drafts and rows here, and go on with what is there")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--serve", nargs=3, metavar=("TARGET", "DRAFT", "N"), help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.serve:
        print(json.dumps(answer(words.serve[0], words.serve[1], int(words.serve[2]), words.tokens)))
        sys.stdout.flush()
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(words.kept or Path(folder), words), indent=1))


def measure(folder: Path, words: argparse.Namespace) -> dict[str, Any]:
    """All rows, those that are kept as they are."""
    from jobs.formats.gguf import gguf_of
    from tests.benchmarks.bench_compress import material

    folder.mkdir(parents=True, exist_ok=True)
    model, data = material(folder, tiny=words.tiny)
    drafts = {name: gguf_of(model, name) for name in words.drafts.split(",") if name}
    if words.distil:
        drafts[DISTILLED] = gguf_of(_distilled(folder, model, data, words), DISTILLED_TYPE)
    found, best = {}, {}
    for target in words.targets.split(","):
        rows = _rows(folder, gguf_of(model, target), drafts, words)
        found[target] = {name: {key: value for key, value in row.items() if key != "texts"} for name, row in rows.items()}
        best[target] = max((row["times_plain"], name) for name, row in found[target].items() if row.get("identical", False))
    return {"model": model.name, "best": best, "rows": found}


def _rows(folder: Path, target: Path, drafts: dict[str, Path], words: argparse.Namespace) -> dict[str, Any]:
    rows: dict[str, Any] = {"plain": _row(folder, target, "-", 0, words)}
    for draft, path in drafts.items():
        for count in map(int, words.n_max.split(",")):
            row = _row(folder, target, str(path), count, words)
            # the plain rate just before or after would be fairer still where others compute beside
            ratio = round(row["tokens_per_second"] / rows["plain"]["tokens_per_second"], 2)
            cpu = round(row["tokens_per_cpu_second"] / rows["plain"]["tokens_per_cpu_second"], 2)
            same = row["texts"] == rows["plain"]["texts"]
            rows[f"{draft}, {count} at once"] = {**row, "times_plain": ratio, "times_plain_by_cpu": cpu, "identical": same}
    return rows


def _row(folder: Path, target: Path, draft: str, count: int, words: argparse.Namespace) -> dict[str, Any]:
    """A row, of the file that keeps them or measured now."""
    file, key = folder / "rows.jsonl", f"{target.name}|{Path(draft).name}|{count}|{words.tokens}"
    kept = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for one in kept:
        if one["key"] == key:
            return dict(one["row"])
    command = [sys.executable, "-m", "tests.benchmarks.bench_speculative", "--serve", str(target), draft, str(count)]
    done = subprocess.run([*command, "--tokens", str(words.tokens)], stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    with file.open("a") as out:
        out.write(json.dumps({"key": key, "row": row}) + "\n")
    print(f"{key}: {row['tokens_per_second']} tokens/s, accepted {row['accepted']}", file=sys.stderr, flush=True)
    return row


def _distilled(folder: Path, model: Path, data: Path, words: argparse.Namespace) -> Path:
    """A smaller model that was distilled from the model, as a directory; resumed where it was ended."""
    from jobs.training.export import export
    from tests.benchmarks.bench_distill import finished, kept_run, student_config

    place = folder / f"draft-{words.layers}-{words.distil}"
    if not place.exists():
        size = "tiny" if words.tiny else "smollm2"
        keys = {"seq_len": 32 if words.tiny else SEQ_LEN, "steps": words.distil, "batch": 4, "lr": 1e-3, "sequences": 4}
        config = student_config(str(model), {"layers": words.layers}, data, argparse.Namespace(size=size, **keys))
        run = kept_run(folder, place.name, {"job": "distill", "entry": "jobs.distill.job:main", "config": config})
        finished(run, place.name)
        export(run, place)
    return place


def answer(target: str, draft: str, count: int, tokens: int) -> dict[str, Any]:
    """Tokens a second of all prompts in a server of its own."""
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
