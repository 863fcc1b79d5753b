"""Losses and gradients by TRL's own trainers, in an environment of its own, for the cells of a JSON file.

    PYTHON_WITH_TRL tests/benchmarks/trl_oracle.py CELLS.json

Imports nothing of this project. A cell: {trl, keys, base, policy, adapter, tokenizer, rows, kl, out}.
"""

import json
import os
import sys
import tempfile
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", WANDB_MODE="disabled")

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()

# a trainer wants text to begin with; what it is asked about are token ids
PAIRS = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
LABELLED = [{"prompt": "a", "completion": word, "label": good} for word, good in (("b", True), ("c", False))]


def policy_of(cell: dict[str, Any]) -> Any:
    """The model that learns, in fp32."""
    kind = AutoModelForSequenceClassification if cell["trl"] == "reward" else AutoModelForCausalLM
    if cell["adapter"] is None:
        return kind.from_pretrained(cell["policy"], dtype=torch.float32)
    from peft import PeftModel

    base = kind.from_pretrained(cell["base"], dtype=torch.float32)
    return PeftModel.from_pretrained(base, cell["adapter"], is_trainable=True)


def arguments(kind: Any, keys: dict[str, Any], **more: Any) -> Any:
    """The configuration of a trainer that reports nothing and changes nothing of the loss."""
    return kind(
        output_dir=tempfile.mkdtemp(),
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        per_device_train_batch_size=64,
        **keys,
        **more,
    )


def without_copy(trainer: Any) -> None:
    """TRL takes the adapter that it is given for the reference; here the reference is the model without it."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")


def trainer_of(cell: dict[str, Any], model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """A trainer, and its inputs."""
    rows, keys = cell["rows"], cell["keys"]
    reference = AutoModelForCausalLM.from_pretrained(cell["base"], dtype=torch.float32) if cell["adapter"] is None else None
    if cell["trl"] == "dpo":
        from trl import DPOConfig, DPOTrainer

        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        data = [dict(zip(names, row, strict=True)) for row in rows]
        settings = arguments(DPOConfig, keys)
        trainer = DPOTrainer(model, reference, settings, train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer)
    elif cell["trl"] == "kto":
        from trl import KTOConfig, KTOTrainer

        names = ("prompt_ids", "completion_ids", "label")
        data = [dict(zip(names, row, strict=True)) for row in rows]
        data = [{**record, "KL_completion_ids": other} for record, other in zip(data, cell["kl"], strict=True)]
        settings = arguments(KTOConfig, keys, train_sampling_strategy="sequential")
        trainer = KTOTrainer(model, reference, settings, train_dataset=Dataset.from_list(LABELLED), processing_class=tokenizer)
    else:
        raise SystemExit(f"no trainer {cell['trl']}")
    without_copy(trainer)
    return trainer, trainer.data_collator(data)


def loss_of(cell: dict[str, Any], model: Any, tokenizer: Any) -> Any:
    """TRL's loss of the rows, with a gradient."""
    if cell["trl"] == "cpo":
        return cpo_loss(cell, model, tokenizer)
    if cell["trl"] == "reward":
        return reward_loss(cell, model, tokenizer)
    trainer, inputs = trainer_of(cell, model, tokenizer)
    return trainer.compute_loss(trainer.model, inputs)


def padded(sequences: list[list[int]], value: int) -> torch.Tensor:
    """Rows of one length."""
    length = max(map(len, sequences))
    return torch.tensor([sequence + [value] * (length - len(sequence)) for sequence in sequences])


def cpo_loss(cell: dict[str, Any], model: Any, tokenizer: Any) -> Any:
    """SimPO, as TRL's CPO trainer has it."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    settings = arguments(CPOConfig, cell["keys"])
    trainer = CPOTrainer(model, args=settings, train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer)
    batch = {}
    for name, column in (("chosen", 1), ("rejected", 2)):
        whole = [row[0] + row[column] for row in cell["rows"]]
        labels = [[-100] * len(row[0]) + row[column] for row in cell["rows"]]
        batch[f"{name}_input_ids"], batch[f"{name}_labels"] = padded(whole, tokenizer.pad_token_id), padded(labels, -100)
        batch[f"{name}_attention_mask"] = padded([[1] * len(item) for item in whole], 0)
    return trainer.get_batch_loss_metrics(trainer.model, batch)[0]


def reward_loss(cell: dict[str, Any], model: Any, tokenizer: Any) -> Any:
    """Bradley-Terry, as TRL's reward trainer has it."""
    from trl import RewardConfig, RewardTrainer

    data = [{"chosen_ids": row[0] + row[1], "rejected_ids": row[0] + row[2]} for row in cell["rows"]]
    settings = arguments(RewardConfig, cell["keys"])
    trainer = RewardTrainer(model, settings, train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer)
    return trainer.compute_loss(trainer.model, trainer.data_collator(data))


def main() -> None:
    """Every cell of the file."""
    with open(sys.argv[1]) as stream:
        cells = json.load(stream)
    for cell in cells:
        tokenizer = AutoTokenizer.from_pretrained(cell["tokenizer"])
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        model = policy_of(cell).eval()  # no dropout, in any of it
        loss = loss_of(cell, model, tokenizer)
        loss.backward()
        gradients = {name: p.grad.contiguous() for name, p in model.named_parameters() if p.grad is not None}
        save_file(gradients, cell["out"], metadata={"loss": repr(loss.item())})


if __name__ == "__main__":
    main()
