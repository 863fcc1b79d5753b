"""Loss and gradient of TRL's SFTTrainer for given conversations: TRL_PYTHON trl_sft_oracle.py JOB.json

A cell: {base, adapter, tokenizer, messages, packed, length, out}. Gradients go into `out` as safetensors, the loss beside them.
With {time: {...}} it measures CPU seconds a step instead, and prints them as one JSON line.
"""

import json
import os
import sys
import tempfile
import time

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


def arguments(folder, **more):
    """Arguments for TRL to compute in fp32 on a CPU, with the whole data as one batch in its order."""
    plain = {"bf16": False, "gradient_checkpointing": False, "use_cpu": True, "report_to": [], "max_grad_norm": 0.0}
    return SFTConfig(
        output_dir=folder, assistant_only_loss=True, save_strategy="no", dataloader_num_workers=0, **{**plain, **more}
    )


def cell(job):
    """One cell of the matrix."""
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32)
    if job["adapter"]:
        model = PeftModel.from_pretrained(model, job["adapter"], is_trainable=True)
    data = Dataset.from_list([{"messages": messages} for messages in job["messages"]])
    with tempfile.TemporaryDirectory() as folder:
        settings = arguments(
            folder, packing=job["packed"], max_length=job["length"], per_device_train_batch_size=len(data), max_steps=1
        )
        trainer = SFTTrainer(model=model, args=settings, train_dataset=data, processing_class=tokenizer)
        inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        trainer.model.eval()  # no dropout is configured; TRL's own metrics are of no interest
        loss = trainer.compute_loss(trainer.model, dict(inputs))
        loss.backward()
    gradients = {name: p.grad.contiguous() for name, p in trainer.model.named_parameters() if p.grad is not None}
    learnt = int((inputs["labels"] != -100).sum()) if "labels" in inputs else 0
    save_file(gradients, job["out"], metadata={"loss": repr(loss.item()), "learnt": str(learnt)})


class Clock(TrainerCallback):
    """CPU seconds of this process at the beginning and the end of each step."""

    def __init__(self):
        self.began, self.steps = 0.0, []

    def on_step_begin(self, *arguments, **more):
        self.began = time.process_time()

    def on_step_end(self, *arguments, **more):
        self.steps.append(time.process_time() - self.began)


def measure(job):
    """CPU seconds of each step of LoRA finetuning."""
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    tokenizer.chat_template = job["template"]
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32)
    data = Dataset.from_list([{"messages": messages} for messages in job["messages"]])
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = arguments(
            folder,
            packing=job["packed"],
            max_length=job["length"],
            per_device_train_batch_size=job["micro_batch"],
            gradient_accumulation_steps=job["accumulate"],
            max_steps=job["steps"],
            max_grad_norm=1.0,
            disable_tqdm=True,
        )
        SFTTrainer(
            model=model, args=settings, train_dataset=data, processing_class=tokenizer, peft_config=lora, callbacks=[clock]
        ).train()
    print(json.dumps({"seconds": clock.steps}))


def main():
    """Every cell of the file, or one measurement."""
    torch.set_num_threads(1)
    with open(sys.argv[1]) as stream:
        job = json.load(stream)
    if "time" in job:
        measure(job["time"])
        return
    for item in job["cells"]:
        cell(item)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
