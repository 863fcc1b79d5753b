"""CPU seconds a step of the training loop against a bare FSDP2 loop and Lightning Fabric's, interleaved in one run.

Usage: python -m tests.benchmarks.bench_training_loop [--steps 20] [--rounds 5] [--ranks 2] [--preset tiny]
The bare loop is what one would write by hand: fully_shard a layer, clip_grad_norm_, fused AdamW, the batches in
memory; no logging, no agreement, no checkpoints, no loader. Fabric's is the same with its ModelParallelStrategy.
Ours does all it does in a run: loader, prefetch, metrics, events, progress. Prints one JSON line; `ratio` is the median
over rounds of ours to bare, `ratio_fabric` that to Fabric's, `ratio_same_loss` that to a bare loop that is given our loss
kernel: the loop alone.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed import TCPStore
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.training.loop.config import OptimConfig
from ropewalk.jobs.training.loop.losses import label_log_probabilities
from ropewalk.jobs.training.loop.recipe import build_trainer
from ropewalk.jobs.training.loop.source import TokenSource
from ropewalk.jobs.training.pretrain.config import PretrainConfig
from ropewalk.jobs.training.pretrain.job import recipe
from ropewalk.sharding.fsdp import decoder_layers
from ropewalk.sharding.group import Group, process_group
from tests.jobs.corpus import make_dataset

VOCABULARY = 8192
LossOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def plain_loss(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Cross entropy as a hand-written loop has it."""
    return F.cross_entropy(logits_NV.float(), targets_N)


def our_loss(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Our kernel in the bare loop: what is left is the loop itself."""
    return -label_log_probabilities(logits_NV, targets_N).sum() / len(targets_N)


def new_model(shape: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(shape, dtype=torch.float32)


def shard(model: Any, mesh: DeviceMesh) -> Any:
    """Divide each layer, and the rest, over the ranks."""
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=False)
    return fully_shard(model, mesh=mesh, reshard_after_forward=False)


def adamw(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)


class BareLoop:
    """Plain FSDP2, the way of its tutorial, with gradients reduced once a step."""

    def __init__(self, shape: Any, group: Group, config: PretrainConfig, sequences: torch.Tensor) -> None:
        self.model = shard(new_model(shape, config.seed), group.mesh)
        self.optimizer = adamw(self.model, config.optim)
        self.clip, self.micro_batch, self.sequences = config.optim.grad_clip, config.batch.micro_batch, sequences

    def step(self, loss_of: LossOf) -> None:
        """One optimizer step on this rank's half of the global batch."""
        pieces = self.sequences.split(self.micro_batch)
        for number, batch in enumerate(pieces):
            last = number == len(pieces) - 1
            self.model.set_requires_gradient_sync(last)
            self.model.set_reshard_after_backward(last)
            logits = self.model(input_ids=batch[:, :-1], use_cache=False).logits
            loss = loss_of(logits.flatten(0, 1), batch[:, 1:].flatten()) / len(pieces)
            loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


class FabricLoop:
    """Fabric's loop, the way of its documentation, with the same model and batches."""

    def __init__(self, shape: Any, ranks: int, config: PretrainConfig, sequences: torch.Tensor) -> None:
        divide = ModelParallelStrategy(lambda model, mesh: shard(model, mesh["data_parallel"]), ranks, tensor_parallel_size=1)
        self.fabric = Fabric(accelerator="cpu", devices=ranks, strategy=divide, plugins=[TorchElasticEnvironment()])
        self.fabric.launch()
        self.model: Any = self.fabric.setup(new_model(shape, config.seed))
        self.optimizer: Any = self.fabric.setup_optimizers(adamw(self.model, config.optim))
        self.clip, self.micro_batch, self.sequences = config.optim.grad_clip, config.batch.micro_batch, sequences

    def step(self) -> None:
        """One optimizer step on this rank's half of the global batch."""
        pieces = self.sequences.split(self.micro_batch)
        for number, batch in enumerate(pieces):
            with self.fabric.no_backward_sync(self.model, enabled=number < len(pieces) - 1):
                logits = self.model(input_ids=batch[:, :-1], use_cache=False).logits
                loss = plain_loss(logits.flatten(0, 1), batch[:, 1:].flatten()) / len(pieces)
                self.fabric.backward(loss)
        self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def cpu_seconds(action: Callable[[], object]) -> float:
    """CPU seconds of this process, all threads."""
    start = time.process_time()
    action()
    return time.process_time() - start


def rank(root: Path, index: int, port: int, arguments: argparse.Namespace, results: Any) -> None:
    """One rank of both loops, in turns."""
    variables = {
        "RANK": index,
        "LOCAL_RANK": index,
        "LOCAL_WORLD_SIZE": arguments.ranks,
        "WORLD_SIZE": arguments.ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update(
        {key: str(value) for key, value in variables.items()}, OMP_NUM_THREADS="1", TORCHELASTIC_USE_AGENT_STORE="True"
    )
    torch.set_num_threads(1)
    run = RunDir(root)
    context = JobContext(run=run, attempt=1, rank=index, local_rank=index, world_size=arguments.ranks)
    config = context.config(PretrainConfig)
    with process_group() as group:
        trainer = build_trainer(context, config, group, recipe(context, config, group))
        loader = cast(TokenSource, trainer.source).loader
        sequences = torch.from_numpy(loader.read(trainer.train_step.plan.samples(0)))
        bare = BareLoop(trainer.state.model.config, group, config, sequences)
        fabric = FabricLoop(trainer.state.model.config, arguments.ranks, config, sequences)
        trainer.state.model.train()
        batches = trainer.batches()

        def ours() -> None:
            trainer.train_on(itertools.islice(batches, arguments.steps))  # type: ignore[arg-type]

        def theirs(loss_of: LossOf) -> None:
            for _ in range(arguments.steps):
                bare.step(loss_of)

        def fabrics() -> None:
            for _ in range(arguments.steps):
                fabric.step()

        turns = [ours, partial(theirs, plain_loss), partial(theirs, our_loss), fabrics]
        for turn in turns:
            turn()
        for _ in range(arguments.rounds):
            results.put([cpu_seconds(turn) / arguments.steps for turn in turns])
            group.barrier()
        batches.close()
        trainer.checkpoints.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="steps of each loop a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--preset", default="tiny")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = make_dataset(Path(folder) / "data", num_documents=4000, vocabulary=VOCABULARY)
        config = {"data": str(data), "model": {"preset": arguments.preset}, "seq_len": 256, "steps": 10**6}
        quiet = {"validation": {"every_steps": 10**9}, "checkpoint": {"every_steps": 10**9}}
        run = RunDir.create("bench", {"job": "pretrain", "config": config | quiet}, Path(folder))
        run.begin_attempt()
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = multiprocessing.get_context("spawn")
        results = context.SimpleQueue()
        ranks = [context.Process(target=rank, args=(run.path, i, store.port, arguments, results)) for i in range(arguments.ranks)]
        for process in ranks:
            process.start()
        rounds = [results.get() for _ in range(arguments.rounds * arguments.ranks)]
        for process in ranks:
            process.join()
    report = {
        "ratio": round(statistics.median(ours / bare for ours, bare, _, _ in rounds), 4),
        "ratio_same_loss": round(statistics.median(ours / same for ours, _, same, _ in rounds), 4),
        "ratio_fabric": round(statistics.median(ours / fabric for ours, _, _, fabric in rounds), 4),
        "cpu_seconds_a_step": {
            name: round(statistics.median(item[i] for item in rounds), 4)
            for i, name in enumerate(("ours", "bare", "bare_same_loss", "fabric"))
        },
        "ratios_same_loss": [round(ours / same, 4) for ours, _, same, _ in rounds],
        "model": arguments.preset,
        "ranks": arguments.ranks,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
