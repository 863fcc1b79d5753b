"""The tensors of a checkpoint by name: parameters, persistent buffers, Adam's moments and step, an average of the weights."""

import torch
from torch import nn

State = dict[str, torch.Tensor]

MODEL = "model."
OPTIMIZER = "optimizer."
EMA = "ema."


def split_name(name: str) -> tuple[str, str]:
    """Return the kind of a tensor, such as `model` or `optimizer.exp_avg`, and the name of its parameter."""
    head, _, rest = name.partition(".")
    if f"{head}." != OPTIMIZER:
        return head, rest
    parameter, _, key = rest.rpartition(".")
    return f"{OPTIMIZER}{key}", parameter


def join_name(kind: str, parameter: str) -> str:
    """Return the name of a tensor from its kind and the name of its parameter."""
    head, _, key = kind.partition(".")
    return ".".join(part for part in (head, parameter, key) if part)


def model_state(model: nn.Module) -> State:
    """Return parameters (a tied one once, under its first name) and persistent buffers; no copies."""
    state: State = {f"{MODEL}{name}": parameter for name, parameter in model.named_parameters()}
    persistent = model.state_dict(keep_vars=True)
    state.update({f"{MODEL}{name}": buffer for name, buffer in model.named_buffers() if name in persistent})
    return state


def trained_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Return the parameters that the optimizer updates, by name; no copies."""
    trained = {id(parameter) for parameter in _parameters_of(optimizer)}
    return {f"{MODEL}{name}": parameter for name, parameter in model.named_parameters() if id(parameter) in trained}


def trained_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the parameters that the optimizer updates, in the model's order."""
    trained = {id(parameter) for parameter in _parameters_of(optimizer)}
    return [parameter for parameter in model.parameters() if id(parameter) in trained]


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Return the optimizer's tensors by the name of their parameter; no copies, so loading into them is loading.

    A frozen parameter has none: they would take twice the size of a model that is trained only in part.
    """
    trained = {id(parameter) for parameter in _parameters_of(optimizer)}
    return {
        f"{OPTIMIZER}{name}.{key}": value
        for name, parameter in model.named_parameters()
        if id(parameter) in trained
        for key, value in optimizer.state[parameter].items()
    }


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@torch.no_grad()
def prepare_adam(optimizer: torch.optim.Optimizer, dtype: torch.dtype | None = None) -> None:
    """Create the state of a fresh Adam, which it would create at its first step, so that a checkpoint can be loaded into it.

    Moments have the parameters' type unless `dtype` is given. torch's own `get_state_dict` takes a step to create it and leaves
    Adam's count at 1.
    """
    for parameter in _parameters_of(optimizer):
        if not optimizer.state[parameter]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, dtype=dtype),
                "exp_avg_sq": torch.zeros_like(parameter, dtype=dtype),
            }
