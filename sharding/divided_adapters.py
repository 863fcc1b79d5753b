"""Low-rank adapters of layers that tensor parallelism divides: each rank has the adapter of its part of the matrix.

Beside a division by outputs (colwise) A is whole and B has the rank's rows; beside one by inputs (rowwise) A has the rank's
columns and B is whole. Whole matrices see a part of the work on each rank: their gradients are summed once a step, and an adapter
adds no collective to its layer.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES
from transformers.distributed.tensor_parallel import ColwiseParallel, RowwiseParallel, TensorParallelLayer

SUMMED = "replicated_with_grad_allreduce"  # transformers' style: whole parameters that see a part of the work on each rank
ADAPTED_ROWS, PARTIAL_ROWS = "adapted_rowwise", "rowwise_partial"
_ADAPTED_COLUMNS = "adapted_colwise"
_A_COLUMNS, _B_COLUMNS, _A_ROWS, _B_ROWS = "adapter_a_colwise", "adapter_b_colwise", "adapter_a_rowwise", "adapter_b_rowwise"
STYLES = {_ADAPTED_COLUMNS, PARTIAL_ROWS, _A_COLUMNS, _B_COLUMNS, _A_ROWS, _B_ROWS}


class _AdaptedColumns(TensorParallelLayer):  # type: ignore[misc]
    """A layer and its adapter, which both get whole inputs as a DTensor, so that their gradients are summed together."""

    def transform_inputs_pre_forward(self, module: nn.Module, args: Any, kwargs: Any, mesh: DeviceMesh) -> Any:
        x = args[0] if isinstance(args[0], DTensor) else DTensor.from_local(args[0], mesh, [Replicate()], run_check=False)
        return (x, *args[1:]), kwargs


class _AColumns(TensorParallelLayer):  # type: ignore[misc]
    def transform_inputs_pre_forward(self, module: nn.Module, args: Any, kwargs: Any, mesh: DeviceMesh) -> Any:
        return (args[0].to_local(grad_placements=[Partial()]), *args[1:]), kwargs


class _BColumns(ColwiseParallel):  # type: ignore[misc]
    def should_use_local_tensors(self, module: nn.Module) -> bool:
        return True

    def transform_inputs_pre_forward(self, module: nn.Module, args: Any, kwargs: Any, mesh: DeviceMesh) -> Any:
        return args, kwargs


class _ARows(RowwiseParallel):  # type: ignore[misc]
    def should_use_local_tensors(self, module: nn.Module) -> bool:
        return True

    def transform_output_post_forward(self, module: nn.Module, output: Any, mesh: DeviceMesh) -> torch.Tensor:
        return output  # type: ignore[no-any-return]


class _BRows(TensorParallelLayer):  # type: ignore[misc]
    def transform_output_post_forward(self, module: nn.Module, output: Any, mesh: DeviceMesh) -> DTensor:
        return DTensor.from_local(output, mesh, [Partial()], run_check=False)


class _AdaptedRows(TensorParallelLayer):  # type: ignore[misc]
    """A layer and its adapter, whose partial sums are added before they are reduced."""

    def transform_output_post_forward(self, module: nn.Module, output: Any, mesh: DeviceMesh) -> torch.Tensor:
        return output.redistribute(placements=[Replicate()]).to_local()  # type: ignore[no-any-return]


for _name, _style in {
    _ADAPTED_COLUMNS: _AdaptedColumns(),
    ADAPTED_ROWS: _AdaptedRows(),
    _A_COLUMNS: _AColumns(),
    _B_COLUMNS: _BColumns(),
    _A_ROWS: _ARows(),
    _B_ROWS: _BRows(),
}.items():
    ALL_PARALLEL_STYLES.register(_name, _style)
# of the layer, its base, A, the matrix of A, B, the matrix of B
_PARTS = {
    "colwise": (_ADAPTED_COLUMNS, "colwise", _A_COLUMNS, SUMMED, _B_COLUMNS, _B_COLUMNS),
    "rowwise": (ADAPTED_ROWS, PARTIAL_ROWS, _A_ROWS, _A_ROWS, _B_ROWS, SUMMED),
}


def _adapted(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers that peft has wrapped, by name."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "base_layer", None), nn.Module):
            yield name, module


def adapter_problem(model: nn.Module, plan: Mapping[str, str]) -> str | None:
    """Return the reason why adapters cannot be divided by a plan of `divide_adapters`; None: they can."""
    for name, module in _adapted(model):
        if not len(getattr(module, "lora_A", ())):
            return f"parallel.tensor: the adapter of {name}, which has rows of tokens, cannot be divided; remove parallel.tensor"
        if (style := plan.get(name)) not in {None, _ADAPTED_COLUMNS, ADAPTED_ROWS}:
            return f"lora.targets: parallel.tensor divides {name} in a way ({style}) that has no adapter; name other layers"
    return None


def divide_adapters(model: nn.Module, plan: Mapping[str, str]) -> dict[str, str]:
    """Add the parts of layers that carry adapters to a plan of full names."""
    result = dict(plan)
    for name, module in _adapted(model):
        if (style := plan.get(name)) not in _PARTS:
            continue
        whole, base, a, a_matrix, b, b_matrix = _PARTS[style]
        styles = {"base_layer": (base, base), "lora_A": (a, a_matrix), "lora_B": (b, b_matrix)}
        for path, part in module.named_modules(prefix=name):
            if parameters := [parameter for parameter, _ in part.named_parameters(recurse=False)]:  # before their module
                of_module, of_matrix = styles[path.removeprefix(f"{name}.").partition(".")[0]]
                result |= {f"{path}.{parameter}": of_matrix for parameter in parameters} | {path: of_module}
        result[name] = whole
    return result
