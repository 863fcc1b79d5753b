"""transformers' Trainer with the promises of a run: copy `Promises` into a script of yours.

ropewalk run command resources.nodes=2 -- python trainer.py
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import ropewalk


class Promises(TrainerCallback):
    """Logs to the run, commits what Trainer has saved, and lets it save and leave when the run must stop."""

    stopped = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        numbers = {f"train/{name}": value for name, value in (logs or {}).items() if isinstance(value, (int, float))}
        ropewalk.log(numbers, step=state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if ropewalk.stop_requested():
            self.stopped = control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        ropewalk.commit_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}", keep=3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 64, (512, 16), generator=generator).cumsum(1) % 64
    data = [{"input_ids": row, "labels": row} for row in tokens]
    arguments = TrainingArguments(
        output_dir=str(ropewalk.checkpoint_dir()),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        save_steps=10,
        use_cpu=not torch.cuda.is_available(),
        ddp_backend=None if torch.cuda.is_available() or "RANK" not in os.environ else "gloo",
        report_to="none",
        disable_tqdm=True,
    )
    promises = Promises()
    trainer = Trainer(LlamaForCausalLM(config), arguments, train_dataset=data, callbacks=[promises])
    latest = ropewalk.latest_checkpoint()
    ropewalk.progress(0, steps)
    trainer.train(resume_from_checkpoint=str(latest) if latest else None)
    if promises.stopped and trainer.state.global_step < steps:
        sys.exit(85)  # requeued: the next attempt goes on from here
    print(f"final {sum(p.double().sum() for p in trainer.model.parameters()).item():.17g}", flush=True)


if __name__ == "__main__":
    main()
