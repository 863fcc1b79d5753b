"""One rank of test_float8.py: small models whose layers compute in float8, emulated."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ropewalk.jobs.training.loop.architecture.bare_model import bare_model
from ropewalk.jobs.training.loop.architecture.model_config import unchecked_config
from ropewalk.jobs.training.loop.model_keys import ModelConfig
from ropewalk.sharding.config import ParallelConfig, PrecisionConfig
from ropewalk.sharding.float8 import compute_in_float8
from ropewalk.sharding.fsdp import fill
from ropewalk.sharding.group import Group, process_group
from ropewalk.sharding.parallelize import parallelize
from tests.sharding.parallel_rank import model_of, train_in
from tests.torchao import allow_torchao

EMULATED = PrecisionConfig(float8="emulated")
STEPS, SAMPLES, TOKENS, VOCABULARY = 50, 4, 32, 64


def rounded(matrix_RC: torch.Tensor) -> torch.Tensor:
    """Round each row to e4m3 with a scale that is a power of two."""
    scale_R1 = torch.exp2(torch.floor(torch.log2(448 / matrix_RC.abs().amax(1, keepdim=True).double()))).float()
    return (matrix_RC * scale_R1).to(torch.float8_e4m3fn).float() / scale_R1


def product_errors(group: Group) -> dict[str, float]:
    """Largest difference of a linear layer from products of rounded matrices, and its largest one from exact products."""
    torch.manual_seed(0)
    model = model_of("cpu")
    compute_in_float8(model, group, PrecisionConfig(float8="emulated", float8_layers=["mlp.up_proj"]))
    layer: Any = model.model.layers[0].mlp.up_proj
    assert type(layer) is not nn.Linear
    assert [type(other) for other in (model.lm_head, model.model.layers[0].mlp.down_proj)] == [nn.Linear] * 2
    x_NI, gradient_NO = torch.randn(48, 32, requires_grad=True), torch.randn(48, 64)
    output_NO = layer(x_NI)
    output_NO.backward(gradient_NO)
    weight_OI, assumed = layer.weight.detach(), x_NI.detach()
    pairs = [
        (output_NO, rounded(assumed) @ rounded(weight_OI).T),
        (x_NI.grad, rounded(gradient_NO) @ rounded(weight_OI.T).T),
        (layer.weight.grad, rounded(gradient_NO.T) @ rounded(assumed.T).T),
    ]
    exact = assumed @ weight_OI.T
    return {
        "rounded": max(float((actual.detach() - wanted).abs().max()) for actual, wanted in pairs),
        "exact": float((output_NO.detach() - exact).abs().max() / exact.abs().max()),
    }


def preset_losses(group: Group, precision: PrecisionConfig) -> list[float]:
    """Losses of the preset tiny, whose data follow a rule with four equally likely next tokens."""
    config = unchecked_config(ModelConfig(preset="tiny"), vocabulary=VOCABULARY, end_of_document=0, seq_len=TOKENS)

    def model_on(device: str) -> Any:
        torch.manual_seed(0)
        with torch.device(device):
            return bare_model(config, "causal_lm")

    model = parallelize(model_on("meta"), group, ParallelConfig(), precision)
    fill(model, model_on("cpu"), group)
    names = {name: (type(parameter), parameter.dtype) for name, parameter in model.named_parameters()}
    assert names == {name: (DTensor, torch.float32) for name, _ in model_on("meta").named_parameters()}
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.Generator().manual_seed(1)
    losses = []
    for _ in range(STEPS):
        tokens = torch.randint(0, VOCABULARY, (SAMPLES, 1), generator=generator)
        for _ in range(TOKENS):
            drawn = torch.randint(0, 4, (SAMPLES, 1), generator=generator)
            tokens = torch.cat([tokens, (tokens[:, -1:] * 5 + drawn) % VOCABULARY], 1)
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def float8_main(rank: int, size: int, port: int, preset: bool, folder: Path) -> None:
    """Report losses with other keys; on one rank also differences of products, and losses of the preset tiny if asked for."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", TORCHELASTIC_USE_AGENT_STORE="True", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    allow_torchao()
    report: dict[str, Any] = {}
    with process_group() as group:
        for mode in ("none", "selective") if size > 1 else ("none",):
            parallel = ParallelConfig.model_validate({"activation_checkpointing": mode})
            report[mode] = train_in(group, parallel, EMULATED, steps=4)
        if size == 1:
            report["fp32"] = train_in(group, ParallelConfig(), PrecisionConfig(), steps=4)
            report |= product_errors(group)
        if preset:
            bf16 = {"compute": "bf16"}
            report["tiny"] = preset_losses(group, PrecisionConfig.model_validate({**bf16, "float8": "emulated"}))
            report["tiny bf16"] = preset_losses(group, PrecisionConfig.model_validate(bf16))
    (folder / f"{rank}-of-{size}.json").write_text(json.dumps(report))
