"""Loss and gradient of GRPO on real ranks, against TRL's trainer and the papers' formulas.

    python -m tests.benchmarks.bench_grpo_oracles [--variants grpo,dapo] [--ranks 1,2,3] [--trl PYTHON]

A cell is a variant of the loss, a number of ranks, and all weights or LoRA. With max_staleness 1 the second step learns from
answers of the policy before the first one, so that ratios differ from 1 and clips decide; of it the job writes down loss and
gradient. Its rollouts are read from the run's ledger. Oracles: the formula in plain torch in float64, a token at a time, and
TRL's trainer in fp32 on the same tokens. TRL lives in an environment of its own: --trl, or $ROPEWALK_TRL_PYTHON, else it is made
under build/trl. Prints one JSON object.

Measured: 2026-11-27, TRL 1.16, twelve variants on two ranks with all weights. One and three ranks and LoRA (72 cells in all)
were not run since the cells differ in length.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.align.grpo_config import GrpoConfig
from ropewalk.jobs.training.loop.model_keys import LoraConfig
from ropewalk.jobs.training.loop.weights.load_checkpoint import load_model
from ropewalk.jobs.training.loop.weights.lora import save_adapter
from ropewalk.jobs.training.rollouts.ledger import arrow_table, read_rollouts
from tests.benchmarks.bench_align_oracles import LORA, difference, summary, trl_python
from tests.jobs.launch import launch, losses
from tests.jobs.training.align.formulas import grpo_loss
from tests.jobs.training.align.pairs import make_model
from tests.jobs.training.align.rolling import grpo_config, grpo_run, prompts, write_prompts

BATCH, GROUP = 12, 4
PARTIAL = [{"tests.jobs.training.align.rolling:share_of_letters": {}}]

VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "grpo_kl": {"kl": 0.04},
    "grpo_tempered": {"temperature": 0.7, "top_p": 0.9},
    "grpo_batch_scaled": {"scale": "batch"},
    "grpo_masked": {"mask_truncated": True},
    "grpo_two_sided": {"max_ratio": 1.3},
    "dr_grpo": {"variant": "dr_grpo"},
    "dr_grpo_kl": {"variant": "dr_grpo", "kl": 0.04},
    "dapo": {"variant": "dapo", "dynamic_sampling": False},
    "dapo_kl": {"variant": "dapo", "dynamic_sampling": False, "kl": 0.04},
    "gspo": {"variant": "gspo", "clip_low": 0.03, "clip_high": 0.04},
    "gspo_kl": {"variant": "gspo", "clip_low": 0.03, "clip_high": 0.04, "kl": 0.04},
}


def rollouts_of(run: RunDir) -> list[dict[str, Any]]:
    """Rollouts of the second step of a run, read from its ledger."""
    table = arrow_table((run.path / "rollouts/prompts.arrow").read_bytes())
    rows = [row for row in read_rollouts(run).to_pylist() if row["step"] == 1]
    rows.sort(key=lambda row: (row["slot"], row["sample"]))
    return [{**row, "prompt_ids": table["tokens"][row["prompt"]].as_py()} for row in rows]


def advantages_of(rows: list[dict[str, Any]], scale: str) -> list[float]:
    """The papers' advantages, a group at a time."""
    rewards = np.array([sum(row["rewards"]) for row in rows])
    results = []
    for start in range(0, len(rewards), GROUP):
        group = rewards[start : start + GROUP]
        by = {"none": 1.0, "group": group.std(ddof=1) + 1e-4, "batch": rewards.std(ddof=1) + 1e-4}[scale]
        results += ((group - group.mean()) / by).tolist()
    return results


def make_cell(folder: Path, name: str, ranks: int, base: Path, data: Path, *, lora: bool) -> dict[str, Any]:
    """Run the job, and save what the oracles need of it."""
    keys = {"max_ratio": 1e6, **VARIANTS[name], "max_staleness": 1, "group_size": GROUP, "rewards": PARTIAL}
    changes = {"lora": LORA} if lora else {}
    batch = {"global_batch": BATCH, "micro_batch": {1: BATCH, 2: 2}.get(ranks, 1)}
    config = grpo_config(base, data, steps=2, checkpoint={"every_steps": 1}, batch=batch, grpo=keys, **changes)
    optim = {"lr": 1e-1 if lora else 2e-2, "warmup_steps": 0, "schedule": "constant", "grad_clip": 0}
    run = grpo_run(folder / "runs", {**config, "optim": optim})
    launch(run, ranks, TEST_HOOK="record_second_gradient")
    grpo, rows = GrpoConfig.model_validate(config["grpo"]), rollouts_of(run)
    advantages = advantages_of(rows, grpo.keys.scale)
    policy = load_model(run, 1, merge=False)[0]
    directory = folder / f"{name}-{ranks}-{'lora' if lora else 'full'}"
    if lora:
        save_adapter(policy, LoraConfig.model_validate(LORA), directory, base="")
        policy.requires_grad_(False)
        for parameter_name, parameter in policy.named_parameters():
            parameter.requires_grad_("lora_" in parameter_name)
    else:
        policy.save_pretrained(directory)
    ours = load_file(run.path / "gradient.safetensors")
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64) if grpo.kl else None
    loss, clipped = grpo_loss(policy.double(), reference, rows, advantages, grpo)
    loss.backward()
    gradient = {key: p.grad for key, p in policy.named_parameters() if p.grad is not None}
    report = {
        "method": name,
        "ranks": ranks,
        "weights": "lora" if lora else "all",
        "loss": losses(run)[2],
        "clipped": clipped,
        "formula": {"loss": abs(losses(run)[2] - loss.item()), "gradient": difference(ours, gradient)},
    }
    return {"told": report, "cell": _trl_cell(grpo, rows, advantages, base, directory, lora=lora), "ours": ours}


def _trl_cell(
    grpo: GrpoConfig, rows: list[dict[str, Any]], advantages: list[float], base: Path, folder: Path, *, lora: bool
) -> dict[str, Any]:
    keys = grpo.keys
    return {
        "trl": "grpo",
        "keys": {
            "loss_type": {"sequence": "grpo", "token": "dapo", "constant": "dr_grpo"}[keys.average],
            "importance_sampling_level": keys.ratio,
            "epsilon": keys.clip_low,
            "epsilon_high": keys.clip_high,
            "delta": grpo.max_ratio if grpo.max_ratio < 1e3 else None,
            "beta": grpo.kl,
            "use_bias_correction_kl": False,  # TRL's default multiplies k3 by the ratio, which none of the four papers does
            "temperature": grpo.temperature,
            "max_completion_length": grpo.max_new_tokens,
            "num_generations": GROUP,
        },
        "base": str(base),
        "policy": str(folder),
        "adapter": str(folder) if lora else None,
        "tokenizer": str(base),
        "rows": [[row["prompt_ids"], row["tokens"], row["log_probs"], row["truncated"]] for row in rows],
        "advantages": advantages,
        "mask_truncated": keys.mask_truncated,
        "kl": [],
        "out": str(folder / "trl.safetensors"),
    }


def ask_trl(cells: list[dict[str, Any]], folder: Path, python: str) -> None:
    """Let TRL compute the cells, and put its differences beside the formula's."""
    file = folder / "cells.json"
    file.write_text(json.dumps([item["cell"] for item in cells]))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    script = str(Path(__file__).with_name("trl_grpo_oracle.py"))
    subprocess.run([python, script, str(file)], check=True, env=environment, stdout=sys.stderr)
    for cell in cells:
        with safe_open(cell["cell"]["out"], "pt") as stream:
            loss = float(stream.metadata()["loss"])
        gradient = load_file(cell["cell"]["out"])
        cell["told"]["trl"] = {"loss": abs(cell["told"]["loss"] - loss), "gradient": difference(cell["ours"], gradient)}


def main() -> None:
    """The matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--ranks", default="1,2,3")
    parser.add_argument("--weights", default="all,lora")
    parser.add_argument("--trl", help="an interpreter that has TRL; none: no TRL")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_model(folder / "model")
        # so many tokens end an answer that answers have different lengths
        (base / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(200, 257))}))
        data = write_prompts(folder / "prompts.jsonl", prompts(20))
        created = [
            make_cell(folder, variant, int(ranks), base, data, lora=weights == "lora")
            for variant in options.variants.split(",")
            for weights in options.weights.split(",")
            for ranks in options.ranks.split(",")
        ]
        if options.trl != "none":
            ask_trl(created, folder, trl_python(options.trl))
        else:
            for cell in created:
                cell["told"]["trl"] = "not asked"
    reports = [item["told"] for item in created]
    assert not any(math.isnan(report["loss"]) for report in reports)
    print(json.dumps({**summary(reports), "matrix": reports}))


if __name__ == "__main__":
    main()
