"""Values as JSON in tensors of bytes, in which ranks exchange them."""

from functools import cache
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter


@cache
def _codec(kind: Any) -> TypeAdapter[list[Any]]:
    """Return the conversion of a list with one value; a list, because models take no options for bytes and infinities."""
    options = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")
    return TypeAdapter(list[kind], config=options)


def to_json(value: Any, kind: Any) -> torch.Tensor:
    """Return the JSON of a value as bytes on the CPU. Raises PydanticSerializationError if the value is not of this kind."""
    return torch.frombuffer(bytearray(_codec(kind).dump_json([value], warnings="error")), dtype=torch.uint8)


def from_json(text: torch.Tensor, kind: Any) -> Any:
    """Return the value. Raises ValidationError if it is not of this kind."""
    return _codec(kind).validate_json(text.numpy().tobytes())[0]
