"""Loss and gradient of `align` on real ranks, against TRL's trainers and the papers' formulas.

    python -m tests.benchmarks.bench_align_oracles [--methods dpo,kto] [--ranks 1,2,3] [--trl PYTHON]

A cell is a method, a number of ranks, and all weights or LoRA. The job takes a step with a reference, so that model and reference
differ; of its second step it writes down loss and gradient. Oracles: the formula in plain torch in float64, a sequence at a time
(every cell), and TRL's trainer in fp32 on the same token ids (where it computes the same thing; else the cell says what differs).
TRL lives in an environment of its own: --trl, or $ROPEWALK_TRL_PYTHON, else it is made under build/trl. Prints one JSON object.

Measured: 2026-11-26, TRL 1.16, ten methods, relative differences. In TRL ipo, orpo and conservative smoothing compute other
things, and a reward head beside an adapter has no format: these cells have no peer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ropewalk.cluster.run.directory import RunDir
from ropewalk.datapipe.loader.order import permute
from ropewalk.jobs.training.align.preferences.source import Rows
from ropewalk.jobs.training.loop.model_keys import LoraConfig
from ropewalk.jobs.training.loop.weights.load_checkpoint import load_model
from ropewalk.jobs.training.loop.weights.lora import save_adapter
from tests.jobs.launch import launch, losses
from tests.jobs.training.align.formulas import kto_losses, pair_losses, reward_losses
from tests.jobs.training.align.pairs import align_config, align_run, make_model, pairs, write_pairs

ROOT = Path(__file__).parents[2]
BATCH = 7
LORA = {"rank": 4}


@dataclass(frozen=True)
class Method:
    """Keys of `align`, and what TRL calls the same thing; `differs`: why TRL is no oracle of it."""

    keys: dict[str, Any]
    trl: str | None = None
    trl_keys: dict[str, Any] = field(default_factory=dict)
    differs: str | None = None


METHODS = {
    "dpo": Method({"method": "dpo"}, "dpo", {"beta": 0.1, "loss_type": ["sigmoid"]}),
    "dpo_conservative": Method(
        {"method": "dpo", "label_smoothing": 0.2}, differs="TRL's sigmoid loss leaves label_smoothing out of account"
    ),
    "dpo_robust": Method(
        {"method": "dpo", "loss": "robust", "label_smoothing": 0.2},
        "dpo",
        {"beta": 0.1, "loss_type": ["robust"], "label_smoothing": 0.2},
    ),
    "dpo_normalized": Method({"method": "dpo", "length_normalized": True}, "dpo", {"beta": 0.1, "loss_type": ["sigmoid_norm"]}),
    "ipo": Method({"method": "ipo"}, differs="TRL divides by the lengths; the paper's equation 17 does not"),
    "ipo_normalized": Method({"method": "ipo", "length_normalized": True}, "dpo", {"beta": 0.1, "loss_type": ["ipo"]}),
    "kto": Method({"method": "kto"}, "kto", {"beta": 0.1}),
    "orpo": Method({"method": "orpo"}, differs="TRL's likelihood is a mean over the batch's tokens, the prompts' included"),
    "simpo": Method({"method": "simpo"}, "cpo", {"beta": 2.0, "loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 1.0}),
    "reward": Method({"method": "reward"}, "reward"),
}


def trl_python(expected: str | None) -> str:
    """An interpreter that has TRL; makes its environment the first time."""
    result = expected or os.environ.get("ROPEWALK_TRL_PYTHON")
    if result:
        return result
    folder = ROOT / "build/trl"
    if not (folder / "bin/python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin/pip"), "install", "--quiet", "trl>=1.16,<2", "peft"], check=True)
    return str(folder / "bin/python")


def step_rows(run: RunDir, kto: bool) -> tuple[list[tuple[Any, ...]], list[list[int]]]:
    """Rows of the second step of a run as plain values, and for KTO the answers of other prompts."""
    rows = Rows(run.path / "pairs/train.arrow")
    numbers = permute(torch.arange(BATCH, 2 * BATCH).numpy(), len(rows), 0, 0).tolist()
    if not kto:
        return [tuple(rows.ids(n, name).tolist() for name in ("prompt", "chosen", "rejected")) for n in numbers], []
    learnt, others = [], []
    for number in numbers:
        prompt = rows.ids(number, "prompt").tolist()
        learnt.append((prompt, rows.ids(number, "completion").tolist(), rows.value(number, "label")))
        following = ((number + step) % len(rows) for step in range(1, len(rows)))
        another = next(item for item in following if rows.ids(item, "prompt").tolist() != prompt)
        others.append(rows.ids(another, "completion").tolist())
    return learnt, others


def formula(
    method: Method, policy: Any, base: Path, rows: list[tuple[Any, ...]], kl: list[list[int]]
) -> tuple[float, dict[str, Any]]:
    """Loss and gradient by the paper's formula, in float64."""
    scored = method.keys["method"] == "reward"
    result = reward_losses(policy, rows) if scored else _with_reference(method, policy, base, rows, kl)
    loss = result.mean()
    loss.backward()
    return loss.item(), {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def _with_reference(method: Method, policy: Any, base: Path, rows: list[tuple[Any, ...]], kl: list[list[int]]) -> torch.Tensor:
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    return kto_losses(policy, reference, rows, kl)[0] if kl else pair_losses(method.keys, policy, reference, rows)


def apart(ours: float, theirs: float) -> float:
    """The difference of two losses, relative to those above 1."""
    return abs(ours - theirs) / max(1.0, abs(theirs))


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The norm of the difference of two gradients, over the norm of the second."""
    plain = {name.removeprefix("base_model.model."): value for name, value in theirs.items()}
    assert ours.keys() == plain.keys(), sorted(ours.keys() ^ plain.keys())[:4]
    apart = sum((ours[name].double() - plain[name].double()).square().sum() for name in ours)
    whole = sum(value.double().square().sum() for value in plain.values())
    return float((apart / whole) ** 0.5)  # type: ignore[operator]


def make_cell(folder: Path, name: str, ranks: int, base: Path, data: Path, *, lora: bool) -> dict[str, Any]:
    """Run the job, and save what the oracles need of it."""
    method = METHODS[name]
    keys = {**method.keys, **({"lora": LORA} if lora else {})}
    batch = {"global_batch": BATCH, "micro_batch": {1: BATCH, 2: 2}.get(ranks, 1)}
    config = align_config(base, data, steps=2, checkpoint={"every_steps": 1}, validation_fraction=0, batch=batch, **keys)
    run = align_run(folder / "runs", {**config, "optim": {"lr": 1e-2 if lora else 3e-3, "warmup_steps": 0}})
    launch(run, ranks, TEST_HOOK="record_second_gradient")
    rows, kl = step_rows(run, name == "kto")
    policy = load_model(run, 1, merge=False)[0]
    directory = folder / f"{name}-{ranks}-{'lora' if lora else 'full'}"
    if lora:
        save_adapter(policy, LoraConfig.model_validate(LORA), directory, base="")
        policy.requires_grad_(False)
        for parameter_name, parameter in policy.named_parameters():
            parameter.requires_grad_("lora_" in parameter_name or parameter_name.startswith("score."))
    else:
        policy.save_pretrained(directory)
    ours = load_file(run.path / "gradient.safetensors")
    wanted, gradient = formula(method, policy.double(), base, rows, kl)
    report = {
        "method": name,
        "ranks": ranks,
        "weights": "lora" if lora else "all",
        "loss": losses(run)[2],
        "formula": {"loss": apart(losses(run)[2], wanted), "gradient": difference(ours, gradient)},
    }
    cell = {
        "trl": None if lora and name == "reward" else method.trl,
        "keys": method.trl_keys,
        "base": str(base),
        "policy": str(directory),
        "adapter": str(directory) if lora else None,
        "tokenizer": str(base),
        "rows": rows,
        "kl": kl,
        "out": str(directory / "trl.safetensors"),
    }
    return {
        "told": report,
        "cell": cell,
        "ours": ours,
        "differs": method.differs or "peft's format has no place for the trained head",
    }


def ask_trl(cells: list[dict[str, Any]], folder: Path, python: str) -> None:
    """Let TRL compute the cells that it has, and put its differences beside the formula's."""
    file = folder / "cells.json"
    file.write_text(json.dumps([item["cell"] for item in cells if item["cell"]["trl"]]))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [python, str(Path(__file__).with_name("trl_oracle.py")), str(file)], check=True, env=environment, stdout=sys.stderr
    )
    for cell in cells:
        if not cell["cell"]["trl"]:
            cell["told"]["trl"] = cell["differs"]
            continue
        with safe_open(cell["cell"]["out"], "pt") as stream:
            loss = float(stream.metadata()["loss"])
        gradient = load_file(cell["cell"]["out"])
        cell["told"]["trl"] = {"loss": apart(cell["told"]["loss"], loss), "gradient": difference(cell["ours"], gradient)}


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Number of cells, the largest differences, and the cells that miss a limit."""
    by_oracle = {oracle: [cell[oracle] for cell in cells if isinstance(cell[oracle], dict)] for oracle in ("formula", "trl")}
    missed = [
        {key: cell[key] for key in ("method", "ranks", "weights")} | {"oracle": oracle}
        for cell in cells
        for oracle in by_oracle
        if isinstance(cell[oracle], dict) and (cell[oracle]["loss"] > 1e-6 or cell[oracle]["gradient"] > 1e-5)
    ]
    largest = {
        oracle: {key: max((item[key] for item in those), default=None) for key in ("loss", "gradient")}
        for oracle, those in by_oracle.items()
    }
    return {"cells": len(cells), "against_trl": len(by_oracle["trl"]), "largest": largest, "missed": missed}


def main() -> None:
    """The matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--ranks", default="1,2,3")
    parser.add_argument("--weights", default="all,lora")
    parser.add_argument("--trl", help="an interpreter that has TRL; none: no TRL")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_model(folder / "model")
        data = write_pairs(folder / "pairs.jsonl", pairs(30))
        created = [
            make_cell(folder, method, int(ranks), base, data, lora=weights == "lora")
            for method in options.methods.split(",")
            for weights in options.weights.split(",")
            for ranks in options.ranks.split(",")
        ]
        if options.trl != "none":
            ask_trl(created, folder, trl_python(options.trl))
        else:
            for cell in created:
                cell["told"]["trl"] = "not asked"
    reports = [item["told"] for item in created]
    print(json.dumps({**summary(reports), "matrix": reports}))


if __name__ == "__main__":
    main()
