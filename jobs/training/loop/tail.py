"""The tail of a model: the part of its forward pass from the decoder's hidden states to the logits, for some tokens alone.

At its first use a model is checked: unless the tail returns the model's own logits of a few tokens, whole logits are computed.
The result also holds for the same model in a later group of ranks.
"""

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from ropewalk.jobs.training.loop.batch import Batch
from ropewalk.jobs.training.loop.documents import known_documents
from ropewalk.sharding.fsdp import reshard_all
from ropewalk.sharding.group import Group
from ropewalk.sharding.tensor_parallel import divided_logits, whole

# B samples, T tokens a sample, R tokens, D hidden size, V vocabulary

log = logging.getLogger(__name__)

T = TypeVar("T")

_CHECK_TOKENS = 8
_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 2e-3}  # of logits, relative to the largest
_OTHER_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Tail:
    """A function from hidden states [R, D] to logits [R, V]."""

    vocabulary: int
    divided: Callable[[torch.Tensor], torch.Tensor]  # a DTensor where tensor parallelism divides the head: by its columns

    def __call__(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        return whole(self.divided(hidden_RD))


def run_tail(model: nn.Module, batch: Batch, use: Callable[[torch.Tensor, Tail], T]) -> T:
    """Run the decoder on a batch, and call `use` with its hidden states [B, T, D] and the tail.

    `use` is called during the model's forward pass and must return tensors, with which FSDP's backward pass begins. The model
    takes everything but the labels by name.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    if whole_logits_reason(model) is not None:
        with known_documents(inputs):
            logits_BTV = model(**inputs, use_cache=False).logits
        return use(logits_BTV, Tail(logits_BTV.shape[-1], lambda logits_RV: logits_RV))
    checked = _CHECKED[model]
    return _run(model, model.get_submodule(checked.decoder), checked.vocabulary, inputs, use)


def tail_parameters(model: nn.Module, tail: Tail, hidden_ND: torch.Tensor) -> list[torch.Tensor]:
    """Return the trained parameters of the tail, during `run_tail`. Call it with gradients enabled."""
    checked = _CHECKED[model]
    if checked.parameters is None:
        with torch.random.fork_rng([hidden_ND.device] if hidden_ND.is_cuda else []):  # resumed steps draw the same
            leaves = {id(leaf) for leaf in _leaves(tail.divided(hidden_ND[:1].detach()))}
        checked.parameters = [name for name, parameter in model.named_parameters() if id(parameter) in leaves]
        assert len(checked.parameters) == len(leaves), "the tail has a parameter that is not the model's"
    return [model.get_parameter(name) for name in checked.parameters]


def _leaves(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the tensors whose gradients a backward pass would compute."""
    waiting, visited = [tensor.grad_fn], set[Any]()
    while waiting:
        function = waiting.pop()
        if function is not None and function not in visited:
            visited.add(function)
            if hasattr(function, "variable"):
                yield function.variable
            waiting += [other for other, _ in function.next_functions]


# --- the check


@dataclass
class TailCheck:
    """The result of a model's check, as plain values."""

    reason: str | None  # why whole logits are computed; None: they are not
    decoder: str = ""  # name of the module
    vocabulary: int = 0  # rows of the head, fillers included
    parameters: list[str] | None = None  # names of trained parameters of the tail; None: not determined yet


_CHECKED: WeakKeyDictionary[nn.Module, TailCheck] = WeakKeyDictionary()
_OF_ATTEMPTS: dict[Hashable, TailCheck] = {}


def whole_logits_reason(model: nn.Module) -> str | None:
    """Return the reason why a model computes whole logits, or None if it computes them in chunks.

    The first call compares the logits of a few tokens; all ranks of a sharded model make it together.
    """
    if model not in _CHECKED:
        checked = _CHECKED[model] = _check(model)
        if checked.reason is not None:
            log.warning("%s computes whole logits, which takes more memory: %s", type(model).__name__, checked.reason)
    return _CHECKED[model].reason


def check_once(model: nn.Module, group: Group, attempt: Hashable) -> str | None:
    """Return `whole_logits_reason` of the model that an attempt trains, which is compared in the attempt's first group alone.

    In later groups, processes that stayed tell the others the result.
    """
    checks = [each for each in group.all_gather_object(_OF_ATTEMPTS.get(attempt), TailCheck | None) if each is not None]
    if checks:
        _CHECKED[model] = checks[0]
    reason = whole_logits_reason(model)
    _OF_ATTEMPTS[attempt] = _CHECKED[model]
    return reason


@torch.no_grad()
def _check(model: Any) -> TailCheck:
    if not hasattr(model, "get_decoder"):
        return TailCheck("it is not a model of transformers")
    was_training = model.training
    model.eval()
    inputs = {"input_ids": torch.arange(_CHECK_TOKENS, device=next(model.parameters()).device)[None]}
    decoders: list[nn.Module] = []  # called by the model's forward, the outermost first
    with _observed(model.base_model, decoders), _observed(model.get_decoder(), decoders):
        own_NV = model(**inputs, use_cache=False).logits[0]
    checked = TailCheck("its forward calls no decoder")
    decoders = [decoder for decoder in decoders if decoder is not model]
    if decoders:
        vocabulary = own_NV.shape[-1]
        reason = _run(model, decoders[0], vocabulary, inputs, lambda hidden_BTD, tail: _difference(own_NV, hidden_BTD, tail))
        decoder = next(name for name, module in model.named_modules() if module is decoders[0])
        checked = TailCheck(reason, decoder, vocabulary)
    if isinstance(model, FSDPModule):
        differs = torch.tensor(float(checked.reason is not None), device=own_NV.device)
        dist.all_reduce(differs)
        if differs.item() and checked.reason is None:
            checked.reason = "they differ on another rank"
    reshard_all(model)
    model.train(was_training)
    return checked


@contextmanager
def _observed(module: nn.Module, calls: list[nn.Module]) -> Iterator[None]:
    """Append the module to `calls` whenever it is called."""
    handle = module.register_forward_pre_hook(lambda module, _: calls.append(module))
    try:
        yield
    finally:
        handle.remove()


def _difference(own_NV: torch.Tensor, hidden_BTD: torch.Tensor, tail: Tail) -> str | None:
    """Describe how a model's logits differ from those of its tail; None: they do not."""
    try:
        tail_NV = torch.cat([tail(hidden_RD) for hidden_RD in torch.split(hidden_BTD.flatten(0, 1), 3)])
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        return f"its head takes no single tokens ({error})"
    if tail_NV.shape != own_NV.shape:
        return f"of {len(own_NV)} tokens it has logits {tuple(own_NV.shape)}, but {tuple(tail_NV.shape)} chunk by chunk"
    exact_NV = own_NV.double().nan_to_num()
    difference = float((tail_NV.double().nan_to_num() - exact_NV).abs().max())
    largest = float(exact_NV.abs().max())
    if difference > _TOLERANCE.get(own_NV.dtype, _OTHER_TOLERANCE) * largest:
        return f"computed chunk by chunk, logits differ by {difference:.2g} (the largest is {largest:.2g})"
    return None


# --- the pass


def _run(model: Any, decoder: nn.Module, vocabulary: int, inputs: Mapping[str, Any], use: Callable[[torch.Tensor, Tail], T]) -> T:
    results: list[T] = []
    forward = decoder.forward

    def run(*arguments: Any, **keywords: Any) -> Any:
        output = forward(*arguments, **keywords)

        def logits(hidden_RD: torch.Tensor) -> torch.Tensor:
            with _replaced(decoder, lambda *_, **__: _with_hidden(output, hidden_RD[None])):
                logits_1RV: torch.Tensor = model.forward(**inputs, use_cache=False).logits
            return logits_1RV.flatten(0, 1)

        results.append(use(output.last_hidden_state, Tail(vocabulary, logits)))
        return _with_hidden(output, output.last_hidden_state[:1, :_CHECK_TOKENS].detach())  # logits that are not used

    # before FSDP's own hook, which must get the tensors that backward begins with
    handle = model.register_forward_hook(lambda *_: results[0], prepend=True)
    try:
        with _replaced(decoder, run), known_documents(inputs), divided_logits():
            model(**inputs, use_cache=False)
    finally:
        handle.remove()
    return results[0]


def _with_hidden(output: Any, hidden_BTD: torch.Tensor) -> Any:
    return type(output)(**{**output, "last_hidden_state": hidden_BTD})


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward of a module temporarily."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
