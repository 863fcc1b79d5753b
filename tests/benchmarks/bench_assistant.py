"""Time from a base model to an exported assistant: the unchanged jobs/configs/assistant.yaml, on real items.

    python -m tests.benchmarks.bench_assistant [--folder build/assistant] [--model tiny]

SmolLM2-135M learns labelled questions as conversations, then the gold answer against another one, and is exported with its cards.
Runs lie in `--folder`; called again it goes on with the pipeline that is there. Prints one JSON object: seconds in all and of
each step, by its attempts.

Measured: 2026-11-27, tests beside it at the lowest priority: SFT 20 minutes, DPO 20.5 (6 of them validation), export with its
cards 15 s; 5,172 labelled items.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from ropewalk.cluster.config_reader import read_job_file
from ropewalk.cluster.run.directory import RunDir
from tests.benchmarks.learnt_items import questions, toys
from tests.jobs.training.align.pairs import make_model
from tests.real_data import smollm2

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"steps": 2, "seq_len": 64}


def prepare(folder: Path, *, tiny: bool) -> Path:
    """The data and the command file."""
    items = toys() if tiny else questions()
    base = make_model(folder / "base") if tiny else smollm2()
    records = [{"prompt": item["prompt"], "completion": item["chosen"].strip()} for item in items]
    for name, rows in (("chat", records), ("pairs", items)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = read_job_file(ROOT / "jobs/configs/assistant.yaml", "pipeline")
    steps = config["steps"]
    steps["sft"]["config"] |= {"model": {"path": str(base)}, "data": "chat.jsonl", **(SMALL if tiny else {})}
    steps["sft"]["config"] |= {"chat": {"template": "plain"}} if tiny else {}
    steps["dpo"]["config"] |= {"data": "pairs.jsonl", **(SMALL if tiny else {})}
    for name in ("sft", "dpo"):
        steps[name]["config"]["resources"] = {"ranks_per_node": 1 if tiny else 2}
    command = f'{sys.executable} -m ropewalk.jobs.cli export --best "$ROPEWALK_RUN/../{{dpo.run}}" {folder / "exported"}'
    steps["export"]["config"]["command"] = command
    path = folder / "assistant.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def main() -> None:
    """Run the pipeline, or what of it did not succeed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="build/assistant")
    parser.add_argument("--model", default="smollm2", choices=["smollm2", "tiny"])
    options = parser.parse_args()
    folder = Path(options.folder).absolute() / options.model
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "ROPEWALK_RUNS": str(folder / "runs"), "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    familiar = [run.id for run in RunDir.all(folder / "runs") if run.record["job"] == "pipeline"]
    command = (
        ["resume", familiar[0]] if familiar else ["run", "pipeline", "-c", str(prepare(folder, tiny=options.model == "tiny"))]
    )
    begin = time.time()
    subprocess.run([sys.executable, "-m", "ropewalk.jobs.cli", *command], cwd=folder, env=environment, check=True)
    if familiar:
        subprocess.run([sys.executable, "-m", "ropewalk.jobs.cli", "wait", familiar[0]], cwd=folder, env=environment, check=True)
    seconds, steps = time.time() - begin, dict[str, Any]()
    for run in RunDir.all(folder / "runs"):
        outcome = run.last_outcome()
        if outcome is not None and outcome.started is not None and outcome.ended is not None:
            steps[run.record["job"]] = round(outcome.ended - outcome.started)
    assert (folder / "exported/README.md").is_file()
    print(json.dumps({"seconds": round(seconds), "went on": bool(familiar), "seconds of the last attempt": steps}))


if __name__ == "__main__":
    main()
