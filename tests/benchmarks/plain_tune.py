"""The peer of bench_sweep_overhead: plain Ray Tune over Ray Train V2, one trial at a time, as their documentation has it.

Usage: RAY_TRAIN_V2_ENABLED=1 python plain_tune.py FOLDER JSON-LIST-OF-CONFIGURATIONS
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run the trials."""
    import ray
    import ray.train
    from ray import tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    folder, configs = sys.argv[1], json.loads(sys.argv[2])
    # without a dashboard, as ours is, Ray gives placement groups of ended trials back late or never (ray 2.60): so many
    # logical CPUs that no trial waits for one
    cpus = 2 * len(configs) + 2
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}, num_cpus=cpus, include_dashboard=False)

    def train_on_worker(variables: dict[str, Any]) -> None:
        from torch import distributed

        from tests.benchmarks.bench_sweep_overhead import train

        distributed.destroy_process_group()  # Train's: ours is made by the training itself
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
            os.environ.pop(name, None)
        ray.train.report({"loss": train(folder, variables["values"])})

    def trial(variables: dict[str, Any]) -> None:
        trainer = TorchTrainer(
            train_on_worker,
            train_loop_config={"values": configs[variables["index"]]},
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(
                name=f"trial-{variables['index']}", storage_path=f"{folder}/ray", callbacks=[TuneReportCallback()]
            ),
        )
        trainer.fit()

    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": 1}),
        param_space={"index": tune.grid_search(list(range(len(configs))))},
        tune_config=tune.TuneConfig(metric="loss", mode="min", max_concurrent_trials=1),
        run_config=tune.RunConfig(name="plain", storage_path=f"{folder}/ray"),
    )
    results = tuner.fit()
    assert not results.errors, results.errors


if __name__ == "__main__":
    main()
