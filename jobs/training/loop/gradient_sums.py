"""Gradients of parameters summed over chunks in fp32; those of matrices of linear layers without another tensor of their size."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from ropewalk.sharding.checkpoints.staging import local_tensor

# R tokens of a chunk, I inputs, O outputs


class GradientSums(TorchFunctionMode):
    """Sums of gradients, one for each parameter. While it is active, F.linear adds the gradient of a parameter here directly."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._parameters = parameters
        self._numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
        self._sums: list[torch.Tensor | None] = [None] * len(parameters)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: Any = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        if function is F.linear and len(arguments) >= 2 and (number := self._numbers.get(id(arguments[1]))) is not None:
            bias_O = arguments[2] if len(arguments) > 2 else (keywords or {}).get("bias")
            return _Linear.apply(*arguments[:2], bias_O, partial(self.add_product, number))  # type: ignore[no-untyped-call]
        return function(*arguments, **(keywords or {}))

    def add(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Add a gradient of each parameter that has one."""
        for number, gradient in enumerate(gradients):
            if gradient is not None:
                total = self._sums[number]
                self._sums[number] = _exact(gradient) if total is None else total.add_(gradient)

    def add_product(self, number: int, gradient_RO: torch.Tensor, input_RI: torch.Tensor) -> None:
        """Add the gradient of a linear layer's matrix, given that of its output."""
        total_OI = self._sums[number]
        gradient_RO, input_RI = local_tensor(gradient_RO), local_tensor(input_RI)  # divided by columns, and whole
        if gradient_RO.is_cuda and gradient_RO.dtype != torch.float32:
            product_OI = torch.mm(gradient_RO.T, input_RI, out_dtype=torch.float32)
            self._sums[number] = product_OI if total_OI is None else total_OI.add_(product_OI)
            return
        gradient_RO, input_RI = _exact(gradient_RO), _exact(input_RI)
        self._sums[number] = gradient_RO.T @ input_RI if total_OI is None else total_OI.addmm_(gradient_RO.T, input_RI)

    def totals(self) -> list[torch.Tensor | None]:
        """Return the sums in the formats of the parameters, and divided as they are."""
        pairs = zip(self._sums, self._parameters, strict=True)
        return [total if total is None else _like(total.to(parameter.dtype), parameter) for total, parameter in pairs]


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _like(total: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    if not isinstance(parameter, DTensor) or isinstance(total, DTensor):
        return total
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(total, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride())


class _Linear(torch.autograd.Function):
    """F.linear, with the gradient of its matrix added to a sum in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        add_product: Callable[[torch.Tensor, torch.Tensor], None],
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight_OI)
        ctx.add_product = add_product
        return F.linear(inputs, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, torch.Tensor | None, None]:
        inputs, weight_OI = ctx.saved_tensors
        gradient_RO = gradient.flatten(0, -2)
        ctx.add_product(gradient_RO, inputs.flatten(0, -2))
        of_inputs = gradient @ weight_OI if ctx.needs_input_grad[0] else None
        return of_inputs, None, gradient_RO.sum(0) if ctx.needs_input_grad[2] else None, None
