"""Check that training gives the same bits before and after a change: losses and parameters of five jobs at 1, 2 and 3 ranks.

    python -m tests.benchmarks.bit_identity record OUT.json [--ropewalk PATH] [--jobs pretrain,dpo] [--ranks 1,2,3]
    python -m tests.benchmarks.bit_identity compare A.json B.json

`record` makes its data itself, trains with the `ropewalk` program given, and notes of each run the sha256 of all exported
parameters and the exact losses. `compare` exits 1 if anything differs. Nothing of the project is imported, so that the script
can drive any checkout or installed version. Bits depend on the machine and on torch: record both sides on one machine.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import safe_open

SIZES = {"model_type": "llama", "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True}
NOUNS = ("rope", "strand", "yarn", "hemp", "walk", "hook", "sledge", "tar", "mast", "sail", "knot", "coil", "anchor", "ship")
VERBS = ("twists", "lays", "spins", "pulls", "coats", "hauls", "binds", "cuts", "winds", "holds")
STEPS = 6
LOSSES = ("train/loss", "validation/loss")


def sentence(draw: random.Random, count: int = 1) -> str:
    """Return `count` sentences over a small vocabulary."""
    slots = (NOUNS, VERBS, NOUNS, NOUNS)
    return " ".join("The {} {} the {} near the {}.".format(*(draw.choice(slot) for slot in slots)) for _ in range(count))


def write_inputs(folder: Path) -> None:
    """Write documents, conversations, preference pairs and prompts, the same ones each time."""
    draw = random.Random(20)
    documents = [{"id": f"d{number}", "text": sentence(draw, draw.randint(4, 30))} for number in range(160)]
    turns = [(sentence(draw), sentence(draw, draw.randint(1, 3))) for _ in range(80)]
    chats = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]}
        for question, reply in turns
    ]
    pairs = [{"prompt": sentence(draw), "chosen": " " + sentence(draw), "rejected": " " + sentence(draw, 2)} for _ in range(80)]
    prompts = [{"id": f"p{number}", "prompt": sentence(draw)} for number in range(40)]
    for name, records in {"documents": documents, "chats": chats, "pairs": pairs, "prompts": prompts}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def job_configs() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the job and its keys of each case; paths are relative to the working folder."""
    training = {
        "steps": STEPS,
        "batch": {"global_batch": 12, "micro_batch": 2},  # 12 sequences divide evenly over 1, 2 and 3 ranks
        "optim": {"lr": 1e-2, "warmup_steps": 2},
        "checkpoint": {"every_steps": 3},
        "validation": {"every_steps": 3, "max_sequences": 8, "patience": None},
    }
    # a batch that does not divide evenly, so that fillers and unequal ranks are covered too
    uneven = {**training, "batch": {"global_batch": 10, "micro_batch": 2}}
    model = {"path": "base"}
    held_out = {"seq_len": 96, "validation_fraction": 0.2, "model": model}
    grpo = {"group_size": 4, "max_new_tokens": 8, "kl": 0.05, "rewards": [{"length": {"target": 12}}]}
    student = {"prune": {"layers": 2, "width": 0.75, "calibration": {"sequences": 6}}}
    return {
        "pretrain": ("pretrain", {**uneven, "data": "data", "seq_len": 48, "model": {"config": SIZES}}),
        "finetune": ("finetune", {**training, **held_out, "data": ["chats.jsonl"], "chat": {"template": "plain"}}),
        "finetune-lora": ("finetune", {**uneven, **held_out, "data": ["chats.jsonl"], "lora": {"rank": 4, "dropout": 0.1}}),
        "dpo": ("align", {**uneven, **held_out, "data": "pairs.jsonl", "method": "dpo"}),
        "grpo": ("align", {**training, **held_out, "data": "prompts.jsonl", "method": "grpo", "grpo": grpo}),
        "distill": (
            "distill",
            {**uneven, "data": "data", "seq_len": 48, "teacher": "base", "student": student, "alpha": 0.3},
        ),
    }


class Program:
    """The `ropewalk` program under test, run in a working folder without trackers and with one thread a rank."""

    def __init__(self, executable: Path, folder: Path) -> None:
        self.executable, self.folder = executable, folder
        mine = ("ROPEWALK_", "WANDB_", "PYTHON", "RANK", "WORLD_SIZE")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(mine)}
        fixed = {"ROPEWALK_RUNS": str(folder / "runs"), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.environment = inherited | fixed

    def __call__(self, *arguments: str) -> str:
        """Run a command and return its output. Raises SystemExit with the end of its output if it fails."""
        command = [str(self.executable), *arguments]
        result = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: exit {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
        return result.stdout

    def train(self, job: str, config: dict[str, Any], name: str, ranks: int) -> Path:
        """Run a job to its end and return its run directory."""
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        output = self("run", job, "-c", path.name, f"name={name}", f"resources.ranks_per_node={ranks}", "--json")
        return self.folder / "runs" / str(json.loads(output.splitlines()[-1])["run"])

    def export(self, run: Path, target: str) -> Path:
        """Export a run's newest checkpoint as a Hugging Face directory."""
        self("export", run.name, target)
        return self.folder / target


def parameters_hash(model: Path) -> str:
    """Return the sha256 over names, types, shapes and bytes of all tensors, in the order of their names."""
    tensors = {}
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).numpy().tobytes())
    return f"{len(tensors)} tensors {digest.hexdigest()}"


def losses(run: Path) -> dict[str, list[str]]:
    """Return every loss of the run's metrics, in order, as Python writes floats: exactly."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {name: [f"{line['step']}: {line[name]!r}" for line in lines if name in line] for name in LOSSES}


def record(executable: Path, jobs: Collection[str], ranks: Collection[int]) -> dict[str, Any]:
    """Train every case and return its parameters' hash and losses, by name and number of ranks."""
    cases = {}
    with tempfile.TemporaryDirectory(prefix="bit-identity-") as name:
        folder = Path(name)
        write_inputs(folder)
        program = Program(executable, folder)
        prepared = {
            "input": ["documents.jsonl"],
            "output": "data",
            "tokenizer": {"train": 512},
            "validation_fraction": 0.1,
            "actors": 1,
        }
        (folder / "preprocess.yaml").write_text(json.dumps(prepared))
        program("run", "preprocess", "-c", "preprocess.yaml")
        configs = job_configs()
        job, config = configs["pretrain"]
        program.export(program.train(job, config, "base-run", 1), "base")
        for case, (job, config) in configs.items():
            for count in ranks if case in jobs else ():
                start = time.monotonic()
                run = program.train(job, config, f"{case}-{count}", count)
                model = program.export(run, f"{case}-{count}-model")
                cases[f"{case} {count}"] = {"parameters": parameters_hash(model), **losses(run)}
                print(f"{case:<14} {count} ranks  {time.monotonic() - start:5.1f} s", file=sys.stderr, flush=True)
    return cases


def compare(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Print a table of the cases of either side, and return True if all are equal bit by bit."""
    all_equal = True
    for case in sorted(before.keys() | after.keys()):
        old, new = before.get(case, {}), after.get(case, {})
        different = [key for key in ("parameters", *LOSSES) if not old.get(key) or old.get(key) != new.get(key)]
        all_equal &= not different
        print(f"{case:<16} {'equal' if not different else 'DIFFERENT: ' + ', '.join(different)}")
        for key in different:
            print(f"    {key}\n      before {old.get(key)}\n      after  {new.get(key)}")
    return all_equal and bool(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("out", type=Path)
    recording.add_argument("--ropewalk", type=Path, default=Path(sys.executable).with_name("ropewalk"))
    recording.add_argument(
        "--jobs", type=lambda text: text.split(","), default=list(job_configs()), help="only these; default: all"
    )
    recording.add_argument("--ranks", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2, 3])
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "record":
        cases = record(arguments.ropewalk.absolute(), arguments.jobs, arguments.ranks)
        arguments.out.write_text(json.dumps(cases, indent=1) + "\n")
    elif not compare(json.loads(arguments.before.read_text()), json.loads(arguments.after.read_text())):
        sys.exit(1)


if __name__ == "__main__":
    main()
