"""Exchange of values between ranks as JSON in tensors of bytes: nothing that a peer sends is unpickled."""

from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pydantic import ConfigDict, TypeAdapter

T = TypeVar("T")


@cache
def _codec(kind: Any) -> TypeAdapter[list[Any]]:
    """Return the conversion of a list with one value; a list, because models take no options for bytes and infinities."""
    options = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")
    return TypeAdapter(list[kind], config=options)


def _to_json(value: Any, kind: Any) -> torch.Tensor:
    """Return the JSON of a value as bytes on the CPU. Raises PydanticSerializationError if the value is not of this kind."""
    return torch.frombuffer(bytearray(_codec(kind).dump_json([value], warnings="error")), dtype=torch.uint8)


def _from_json(text: torch.Tensor, kind: Any) -> Any:
    """Return the value. Raises ValidationError if it is not of this kind."""
    return _codec(kind).validate_json(text.numpy().tobytes())[0]


def gather(value: T, kind: Any, rank: int, world_size: int, *, everywhere: bool) -> list[T]:
    """Return every rank's value, in rank order, on rank 0 or everywhere; nothing on the other ranks."""
    text = _to_json(value, kind)
    if world_size == 1:
        return [_from_json(text, kind)]
    longest = torch.tensor([len(text)])
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    text = torch.nn.functional.pad(text, (0, int(longest) - len(text)), value=ord(" "))
    texts = [torch.empty_like(text) for _ in range(world_size)] if everywhere or rank == 0 else []
    if everywhere:
        dist.all_gather(texts, text)
    else:
        dist.gather(text, texts or None, dst=0)
    return [_from_json(each, kind) for each in texts]


def broadcast(value: T | None, kind: Any, rank: int, world_size: int) -> T:
    """Return rank 0's value on every rank."""
    text = _to_json(value, kind) if rank == 0 else torch.empty(0, dtype=torch.uint8)
    if world_size > 1:
        size = torch.tensor([len(text)])
        dist.broadcast(size, src=0)
        if rank:
            text = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(text, src=0)
    result: T = _from_json(text, kind)
    return result
