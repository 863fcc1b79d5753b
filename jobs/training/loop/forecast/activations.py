"""Memory of activations, measured on the meta device: a forward and backward pass of the decoder that computes nothing."""

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

# B samples, T tokens a sample, H heads, D size of a head

_aten = torch.ops.aten
_LARGEST_HEAD = 256  # of the flash kernel on GPUs
_KERNELS = {False: "ropewalk_meta_cpu", True: "ropewalk_meta_gpu"}


class Activations(NamedTuple):
    """Bytes of a pass over some samples."""

    saved: int  # between forward and backward
    peak: int  # the most at once, without gradients of parameters


def measure_activations(model: Any, num_samples: int, seq_len: int, *, bf16: bool, gpu: bool) -> Activations:
    """Return the bytes of activations of a model on the meta device, whose parameters change to the format of computation.

    Raises RuntimeError for a model whose forward pass depends on values.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16 if bf16 else torch.float32)
    if model.config._attn_implementation in {"sdpa", *_KERNELS.values()}:
        model.set_attn_implementation(_KERNELS[gpu])
    tokens_BT = torch.zeros(num_samples, seq_len, dtype=torch.int64, device="meta")
    decoder = model.base_model if model.base_model is not model else model.get_decoder()
    model.train()
    storages = _Storages([*model.parameters(), *model.buffers()])
    handles = [p.register_post_accumulate_grad_hook(storages.drop_gradient) for p in model.parameters() if p.requires_grad]
    try:
        with storages:
            with _WholeSamples():
                hidden_BTD = decoder(input_ids=tokens_BT, use_cache=False).last_hidden_state
            saved = storages.live
            torch.autograd.backward(hidden_BTD, torch.empty_like(hidden_BTD))
    finally:
        for handle in handles:
            handle.remove()
    return Activations(saved, max(storages.history))


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes of all storages that operations have made and that still exist, besides those of the `others`."""

    def __init__(self, others: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.history: list[int] = []  # after each new storage
        self._others = weakref.WeakSet(tensor.untyped_storage() for tensor in others)
        self._made: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()  # → index in history

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._made and storage not in self._others:
            self._made[storage] = len(self.history)
            self.live += storage.nbytes()
            self.history.append(self.live)
            weakref.finalize(storage, self._subtract, storage.nbytes())

    def _subtract(self, size: int) -> None:
        self.live -= size

    def drop_gradient(self, parameter: torch.Tensor) -> None:
        """Free the gradient of a parameter, and count as if it had not been made."""
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        for index in range(self._made[storage], len(self.history)):
            self.history[index] -= storage.nbytes()
        parameter.grad = None


class _WholeSamples(TorchFunctionMode):
    """Truth of values, which meta tensors lack: transformers tests whether samples are whole, without padding."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.__bool__ and args[0].is_meta:
            return True
        return function(*args, **(kwargs or {}))


# --- attention: on the meta device torch would choose the one kernel that keeps all scores


def _attention(*, gpu: bool) -> Any:
    """Return the attention of a CPU or GPU with the arguments of transformers."""

    def attend(*tensors: Any, dropout: float = 0.0, scaling: float | None = None, **others: Any) -> tuple[torch.Tensor, None]:
        module, *projections = tensors
        mask = others["attention_mask"] if "attention_mask" in others else projections.pop()
        causal = others.get("is_causal")
        causal = mask is None and (getattr(module, "is_causal", True) if causal is None else causal)
        output_BHTD = _kernel(projections, mask, gpu=gpu)(dropout, causal, scale=scaling)[0]
        return output_BHTD.transpose(1, 2).contiguous(), None

    return attend


def _kernel(projections: list[torch.Tensor], mask: torch.Tensor | None, *, gpu: bool) -> Callable[..., Any]:
    """Return the kernel that F.scaled_dot_product_attention chooses, applied to query, key, value and mask."""
    query_BHTD, key, value = projections
    if not gpu:
        return partial(_aten._scaled_dot_product_flash_attention_for_cpu, query_BHTD, key, value, attn_mask=mask)
    if mask is None and query_BHTD.shape[-1] <= _LARGEST_HEAD and query_BHTD.element_size() == 2:
        return partial(_aten._scaled_dot_product_flash_attention, query_BHTD, key, value)
    repeats = query_BHTD.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    bias = mask.to(query_BHTD.dtype) if mask is not None else None
    return partial(_aten._scaled_dot_product_efficient_attention, query_BHTD, key, value, bias, True)


for _gpu, _name in _KERNELS.items():
    AttentionInterface.register(_name, _attention(gpu=_gpu))
    AttentionMaskInterface.register(_name, sdpa_mask)
