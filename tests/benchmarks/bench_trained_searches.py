"""A search against random draws on trials that are really trained, not read from the table: paired seeds, the same scheduler.

    python -m tests.benchmarks.bench_trained_searches [--data code] [--seeds 10] [--searches sobol,gp] [--scheduler fifo]

The trials are those of the table of curves (`record_curves`), but each is trained with the values that the search proposes, and
with the seed of its sweep. As in a sweep by default, none is stopped early. Compared is the final validation loss of the best
complete trial of each sweep.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ropewalk.jobs.orchestration.sweep.search.space import encode
from ropewalk.jobs.orchestration.sweep.simulate.curve_table import Curve, CurveTable
from ropewalk.jobs.orchestration.sweep.simulate.simulator import simulate
from ropewalk.jobs.results.compare import judge
from ropewalk.sharding.group import process_group
from tests.benchmarks.curve_data import make_data
from tests.benchmarks.record_curves import BATCH, SEQ_LEN, Trainer, sweep_of
from tests.benchmarks.swept import use_folder


@dataclass(frozen=True, kw_only=True)
class TrainedTable(CurveTable):
    """A table that trains a configuration when a trial has it, instead of rounding it to a recorded one."""

    trainer: Trainer = field(repr=False)
    seed: int

    def nearest(self, parameters: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[Any, ...]:
        """Train the trial's own configuration, once."""
        point = tuple(encode(parameters[key]) for key in self.keys)
        if self.seed not in self.curves.get(point, {}):
            row = self.trainer.curve(self.data, parameters, self.seed)
            curve = Curve(steps=tuple(row["steps"]), values=tuple(row["loss"]), flops=row["flops"])
            self.curves[point] = {self.seed: curve}  # type: ignore[index]
        return point


def best_of(trained: TrainedTable, recorded: CurveTable, search: str, scheduler: str, trials: int) -> float:
    """Return the final loss of the best complete trial of a sweep."""
    config = sweep_of(recorded).model_copy(update={"search": search, "scheduler": scheduler, "trials": trials})
    best = simulate(config, trained, seed=trained.seed).results.best
    assert best is not None
    return math.inf if best.metric is None else best.metric


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="code")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--searches", default="sobol,gp")
    parser.add_argument("--scheduler", default="fifo")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ropewalk-curves", help="the data sets")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    use_folder(arguments.folder)
    make_data(arguments.folder)
    recorded = CurveTable.read(arguments.data)
    losses: dict[str, list[float]] = {name: [] for name in ("random", *arguments.searches.split(","))}
    with process_group() as group:
        torch.set_num_threads(1)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            trainer = Trainer(arguments.folder, recorded.num_steps * BATCH * SEQ_LEN, group)
            keys: dict[str, Any] = {name: getattr(recorded, name) for name in ("data", "job", "metric", "keys")}
            trained = TrainedTable(**keys, curves=dict(recorded.curves), trainer=trainer, seed=seed)
            for search, values in losses.items():
                values.append(best_of(trained, recorded, search, arguments.scheduler, arguments.trials))
            print(json.dumps({"seed": seed, **{search: values[-1] for search, values in losses.items()}}), flush=True)
    for search in list(losses)[1:]:
        comparison = judge([other - mine for mine, other in zip(losses[search], losses["random"], strict=True)])
        means = {name: statistics.fmean(losses[name]) for name in (search, "random")}
        gain = {"gain": comparison.difference, "standard_error": comparison.standard_error, "p": comparison.p_of("first")}
        print(json.dumps({"data": recorded.data, "search": search, "means": means, **gain}), flush=True)


if __name__ == "__main__":
    main()
