"""Record the learning curves of a grid of configurations in a Parquet file, from which `ropewalk sweep simulate` answers.

    python -m tests.benchmarks.record_curves FILE.parquet [--folder DIR] [--minutes 60] [--pilot] [--tokens 32768] [--prove 3]

Each point is a `pretrain` on the quick start's corpus, as code or as the prose in it, by a plain loop over pretrain's own data,
first weights, objective and learning rate; `--prove N` trains N points with pretrain itself and prints the largest difference
of a loss. Points in the file are not trained again, so that the same command continues after a kill; with more values in `GRID`
it adds their points, then two more seeds of the best tenth and of as many others. `--pilot` trains the corners of the grid, some
with two seeds, and prints the losses by dimension and the noise of seeds.

Measured on a busy machine, 0.8 to 10 CPU seconds a point. Of three points of an earlier grid two had the losses of pretrain
itself, to 7e-7; the third, at a high rate, differed by 0.0013 at most: training amplifies rounding.
In the pilots the noise of seeds was 0.048; mean absolute effects were 0.24 (initializer range), 0.22 (depth), 0.12 (warm-up),
0.071 (width), 0.068 (schedule), 0.048 (gradient clipping), 0.037 (betas) and 0.029 (weight decay). The last three were dropped.
Batch is left out: a sweep has one number of steps for all trials.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.orchestration.sweep.config import SweepConfig
from ropewalk.jobs.orchestration.sweep.search.space import merge_parameters
from ropewalk.jobs.orchestration.sweep.simulate.curve_table import CurveTable
from ropewalk.jobs.training.loop.architecture.bare_model import empty_model
from ropewalk.jobs.training.loop.batch import Batch
from ropewalk.jobs.training.loop.objective import NextToken
from ropewalk.jobs.training.loop.recipe import Recipe, train
from ropewalk.jobs.training.loop.update.optimizer import learning_rate
from ropewalk.jobs.training.loop.weights.run_weights import first_weights
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.jobs.training.pretrain.job import recipe
from ropewalk.sharding.group import Group, process_group
from tests.benchmarks.curve_data import DATA, VOCABULARY, make_data
from tests.benchmarks.swept import use_folder

SEQ_LEN, BATCH, VALIDATIONS, HELD_OUT = 64, 8, 16, 32
SEEDS = (0, 1, 2)  # of the best tenth of the points, and of as many others
GRID: dict[str, list[Any]] = {  # the first key changes slowest, so that a file that is not full holds whole grids of the others
    "model.config.initializer_range": [0.04, 0.08, 0.02],
    "model.config.hidden_size": [32, 64, 128],
    "model.config.num_hidden_layers": [1, 4],
    "optim.schedule": ["cosine", "constant"],
    "optim.warmup_steps": [2, 12],
    "optim.lr": [round(1e-3 * 2**k, 6) for k in range(8)],
}
PILOT = {"optim.grad_clip": [0.25, 4.0]}  # its effect was that of the noise of seeds


def config_of_point(data: Path, parameters: Mapping[str, Any], seed: int, tokens: int) -> PretrainConfig:
    """Return pretrain's configuration of a point."""
    width, steps = parameters["model.config.hidden_size"], tokens // (BATCH * SEQ_LEN)
    heads = {"num_attention_heads": width // 32, "num_key_value_heads": width // 32}
    sizes = {"model_type": "llama", "intermediate_size": 3 * width, "max_position_embeddings": SEQ_LEN, **heads}
    values = {
        "data": str(data),
        "seq_len": SEQ_LEN,
        "steps": steps,
        "seed": seed,
        "model": {"config": {**sizes, "tie_word_embeddings": True}},
        "batch": {"global_batch": BATCH, "micro_batch": BATCH},
        "checkpoint": {"every_steps": steps},
        "validation": {"every_steps": steps // VALIDATIONS, "max_sequences": HELD_OUT},
    }
    config = load_config(PretrainConfig, merge_parameters(values, parameters))
    assert isinstance(config, PretrainConfig)
    return config


class Trainer:
    """Trains points in this process. What points share is read once: batches, and first weights."""

    def __init__(self, folder: Path, tokens: int, group: Group) -> None:
        self.folder, self.tokens, self.group = folder, tokens, group
        self._batches: dict[tuple[str, int], tuple[list[Batch], Batch]] = {}
        self._models: dict[str, tuple[Any, dict[str, torch.Tensor]]] = {}

    def _parts(self, config: PretrainConfig, scratch: str) -> tuple[JobContext, Recipe]:
        record = {"job": "pretrain", "entry": "", "config": config.model_dump(mode="json")}
        run = RunDir.create("point", record, Path(scratch))
        context = JobContext(run=run, attempt=run.begin_attempt())
        return context, recipe(context, config, self.group)

    def pretrain(self, data: str, parameters: Mapping[str, Any], seed: int) -> list[float]:
        """Return the validation losses of pretrain itself."""
        config = config_of_point(self.folder / data, parameters, seed, self.tokens)
        with tempfile.TemporaryDirectory() as scratch:
            context, parts = self._parts(config, scratch)
            context.fence.claim()
            train(context, config, self.group, parts)
            lines = {line["step"]: line for line in context.run.read_metrics() if "validation/loss" in line}
            return [line["validation/loss"] for line in lines.values()]

    def curve(self, data: str, parameters: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Train one point; return its row of the table."""
        began = time.process_time()
        config = config_of_point(self.folder / data, parameters, seed, self.tokens)
        shape = json.dumps([config.model.config, seed])
        if (data, seed) not in self._batches or shape not in self._models:
            self._read(data, config, shape)
        model, weights = self._models[shape]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        losses = list(self._train(model, config, *self._batches[data, seed]))
        size = sum(parameter.numel() for parameter in model.parameters())
        steps = [config.validation.every_steps * (k + 1) for k in range(VALIDATIONS)]
        cost = {"flops": 6.0 * size * self.tokens, "seconds": time.process_time() - began}
        return {"data": data, **parameters, "seed": seed, "steps": steps, "loss": losses, **cost}

    def _read(self, data: str, config: PretrainConfig, shape: str) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            context, parts = self._parts(config, scratch)
            model = empty_model(parts.model.config)
            weights = first_weights(parts.model.config, None, context.run)
            self._models[shape] = model, {name: weights.read(name) for name, _ in model.named_parameters()}
        held_out: Any = parts.validation
        batches = [parts.source.read(range(step * BATCH, (step + 1) * BATCH)) for step in range(config.steps)]
        self._batches[data, config.seed] = batches, held_out.source.read(range(HELD_OUT))

    def _train(self, model: Any, config: PretrainConfig, batches: list[Batch], held_out: Batch) -> Iterator[float]:
        optim, objective, parameters = config.optim, NextToken(), list(model.parameters())
        vectors = {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}
        groups = [{"params": [p for p in parameters if p.dim() > 1]}, vectors]
        options: dict[str, Any] = {"betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay}
        optimizer = torch.optim.AdamW(groups, lr=optim.lr, **options, fused=True)
        for step, batch in enumerate(batches):
            terms = objective(model, batch)
            (terms.loss_sum / terms.weight).backward()
            torch.nn.utils.clip_grad_norm_(parameters, optim.grad_clip)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(optim, step, config.steps)
            optimizer.step()
            optimizer.zero_grad()
            if (step + 1) % config.validation.every_steps == 0:
                with torch.no_grad():
                    terms = objective(model, held_out)
                yield float(terms.loss_sum / terms.weight)


# --- the table


def sweep_of(table: CurveTable) -> SweepConfig:
    """Return a sweep over all that the table varies."""
    space = {key: {"choice": values} for key, values in table.values.items()}
    space["optim.lr"] = {"loguniform": [min(table.values["optim.lr"]), max(table.values["optim.lr"])]}
    sizes = {"model_type": "llama", "intermediate_size": 96, "num_attention_heads": 1, "num_key_value_heads": 1}
    base = {"data": table.data, "seq_len": SEQ_LEN, "steps": table.num_steps, "model": {"config": sizes}}
    keys = {"job": table.job, "metric": table.metric, "space": space}
    base["batch"] = {"global_batch": BATCH, "micro_batch": BATCH}
    config = load_config(SweepConfig, {**keys, "base": base})
    assert isinstance(config, SweepConfig)
    return config


def key_of(row: Mapping[str, Any]) -> str:
    return json.dumps([row["data"], row["seed"], *(row.get(key) for key in (*GRID, *PILOT))])


def read_rows(file: Path) -> list[dict[str, Any]]:
    return pq.read_table(file).to_pylist() if file.is_file() else []


def write_rows(file: Path, rows: list[dict[str, Any]], tokens: int) -> None:
    """Replace the file by one with these rows, atomically."""
    table = pa.Table.from_pylist(rows)
    loss = table.schema.get_field_index("loss")
    table = table.set_column(loss, "loss", table["loss"].cast(pa.list_(pa.float32())))
    about = {
        "tokens": tokens,
        "seq_len": SEQ_LEN,
        "global_batch": BATCH,
        "vocabulary": VOCABULARY,
        "held_out_sequences": HELD_OUT,
    }
    about |= {"job": "pretrain", "metric": "validation/loss", "keys": list(GRID)}
    partial = file.with_suffix(".new")
    pq.write_table(table.replace_schema_metadata({"ropewalk": json.dumps(about)}), partial, compression="zstd")
    os.replace(partial, file)


def points(which: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(which, values, strict=True)) for values in itertools.product(*which.values())]


def wanted(rows: list[dict[str, Any]], *, pilot: bool) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yield the points in their order: the whole grid with one seed, then the best tenth and as many others with two more."""
    if pilot:
        ends = {key: [values[0], values[-1]] for key, values in GRID.items()} | {"optim.lr": GRID["optim.lr"][4:5]}
        corners = points({**ends, **PILOT})
        yield from (("code", point, seed) for seed, chosen in ((0, corners), (1, corners[::4])) for point in chosen)
        return
    first, *inner = GRID
    for value in GRID[first]:
        yield from ((data, point, 0) for data in DATA for point in points({first: [value], **{key: GRID[key] for key in inner}}))
    for data in DATA:
        ranked = sorted((row for row in rows if row["data"] == data and row["seed"] == 0), key=_final)
        best, others = ranked[: math.ceil(len(ranked) / 10)], ranked[math.ceil(len(ranked) / 10) :]
        for row in [*best, *others[:: max(1, len(others) // max(1, len(best)))]]:
            yield from ((data, {key: row[key] for key in GRID}, seed) for seed in SEEDS[1:])


def _final(row: Mapping[str, Any]) -> float:
    return float(row["loss"][-1]) if math.isfinite(row["loss"][-1]) else math.inf


def extend(file: Path, trainer: Trainer, minutes: float, *, pilot: bool) -> None:
    """Train the points that the file lacks, for so long at most."""
    rows, began, saved = read_rows(file), time.monotonic(), time.monotonic()
    existing = {key_of(row) for row in rows}
    for data, parameters, seed in wanted(rows, pilot=pilot):
        if time.monotonic() - began > 60 * minutes:
            break
        if key_of({"data": data, "seed": seed, **parameters}) not in existing:
            rows.append(trainer.curve(data, parameters, seed))
            if time.monotonic() - saved > 10:
                write_rows(file, rows, trainer.tokens)
                saved = time.monotonic()
                print(f"{len(rows)} points, {statistics.fmean(row['seconds'] for row in rows):.2f} CPU seconds each", flush=True)
    write_rows(file, rows, trainer.tokens)


def effects(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean effect on the final loss of each dimension, and the standard deviation over seeds."""
    by_point: dict[str, list[float]] = {}
    for row in rows:
        by_point.setdefault(json.dumps([row[key] for key in (*GRID, *PILOT)]), []).append(_final(row))
    noise = math.sqrt(statistics.fmean(statistics.variance(values) for values in by_point.values() if len(values) > 1))
    result: dict[str, Any] = {"noise": noise}
    for key in (*GRID, *PILOT):
        means: dict[str, list[float]] = {}
        for row in rows:
            means.setdefault(json.dumps(row[key]), []).append(_final(row))
        result[key] = {value: statistics.fmean(losses) for value, losses in means.items()}
    return result


def prove(trainer: Trainer, number: int) -> None:
    """Train points that are spread over the grid with pretrain itself, and print the largest difference of a loss."""
    grid = [(data, point) for data in DATA for point in points(GRID)]
    for data, point in grid[:: len(grid) // number] if number else ():
        pairs = zip(trainer.pretrain(data, point, 0), trainer.curve(data, point, 0)["loss"], strict=True)
        print(json.dumps({"data": data, **point, "largest_difference": max(abs(a - b) for a, b in pairs)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ropewalk-curves", help="the data sets")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--pilot", action="store_true")
    parser.add_argument("--prove", type=int, default=0)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    use_folder(arguments.folder)
    make_data(arguments.folder)
    torch.set_num_threads(1)
    with process_group() as group:
        torch.set_num_threads(1)
        trainer = Trainer(arguments.folder, arguments.tokens, group)
        prove(trainer, arguments.prove)
        extend(arguments.file, trainer, arguments.minutes, pilot=arguments.pilot)
    if arguments.pilot:
        print(json.dumps(effects(read_rows(arguments.file)), indent=1))


if __name__ == "__main__":
    main()
