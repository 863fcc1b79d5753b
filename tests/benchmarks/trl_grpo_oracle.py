"""GRPO losses and gradients by TRL's own trainer, in an environment of its own, for the cells of a JSON file.

    PYTHON_WITH_TRL tests/benchmarks/trl_grpo_oracle.py CELLS.json

Imports nothing of this project but what lies beside it.
"""

import json
import sys
from typing import Any

from trl_oracle import arguments, policy_of  # sets the environment, and so comes first

import torch  # isort: skip
from datasets import Dataset  # isort: skip
from safetensors.torch import save_file  # isort: skip
from transformers import AutoModelForCausalLM, AutoTokenizer  # isort: skip
from trl import GRPOConfig, GRPOTrainer  # isort: skip


def inputs_of(cell: dict[str, Any]) -> dict[str, Any]:
    """A batch as TRL's generation gives it: prompts padded on the left, answers on the right."""
    rows, longest = cell["rows"], max(len(row[0]) for row in cell["rows"])
    prompts = torch.tensor([[0] * (longest - len(row[0])) + row[0] for row in rows])
    prompt_mask = torch.tensor([[0] * (longest - len(row[0])) + [1] * len(row[0]) for row in rows])
    longest = max(len(row[1]) for row in rows)
    answers = torch.tensor([row[1] + [0] * (longest - len(row[1])) for row in rows])
    mask = torch.tensor([[1] * len(row[1]) + [0] * (longest - len(row[1])) for row in rows])
    if cell["mask_truncated"]:
        mask = mask * torch.tensor([[not row[3]] for row in rows]).int()
    return {
        "prompt_ids": prompts,
        "prompt_mask": prompt_mask,
        "completion_ids": answers,
        "completion_mask": mask,
        "advantages": torch.tensor(cell["advantages"]),
        "old_per_token_logps": torch.tensor([row[2] + [0.0] * (longest - len(row[2])) for row in rows]),
        "num_items_in_batch": mask.sum(),
    }


def reference_log_probs(cell: dict[str, Any]) -> torch.Tensor:
    """Those of the base model, a row at a time; TRL's own function only takes a model that its trainer has patched."""
    base = AutoModelForCausalLM.from_pretrained(cell["base"], dtype=torch.float32).eval()
    result = torch.zeros(len(cell["rows"]), max(len(row[1]) for row in cell["rows"]))
    with torch.no_grad():
        for number, (prompt, answer, *_) in enumerate(cell["rows"]):
            logits = base(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / cell["keys"]["temperature"]
            result[number, : len(answer)] = logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
    return result


def loss_of(cell: dict[str, Any], model: Any, tokenizer: Any) -> Any:
    """TRL's loss of the rows, with a gradient."""
    keys = {name: value for name, value in cell["keys"].items() if value is not None}
    settings = arguments_of(keys)
    data = Dataset.from_list([{"prompt": "a"}] * 64)
    trainer = GRPOTrainer(model, lambda completions, **_: [0.0] * len(completions), settings, data, processing_class=tokenizer)
    trainer.current_gradient_accumulation_steps = 1
    inputs = inputs_of(cell)
    if keys["beta"]:
        inputs["ref_per_token_logps"] = reference_log_probs(cell)
    trainer.model.eval()
    return trainer._compute_loss(trainer.model, inputs)


def arguments_of(keys: dict[str, Any]) -> Any:
    """The trainer's configuration."""

    class Config(GRPOConfig):
        def __init__(self, **arguments: Any) -> None:
            arguments.pop("max_length")
            super().__init__(**arguments)

    return arguments(Config, keys)


def main() -> None:
    """Every cell of the file."""
    with open(sys.argv[1]) as stream:
        cells = json.load(stream)
    for cell in cells:
        tokenizer = AutoTokenizer.from_pretrained(cell["tokenizer"])
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        model = policy_of({**cell, "trl": "grpo"}).eval()
        loss = loss_of(cell, model, tokenizer)
        loss.backward()
        gradients = {name: p.grad.contiguous() for name, p in model.named_parameters() if p.grad is not None}
        save_file(gradients, cell["out"], metadata={"loss": repr(loss.item())})


if __name__ == "__main__":
    main()
