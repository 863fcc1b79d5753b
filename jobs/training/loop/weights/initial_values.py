"""Random first weights, drawn part by part: equal for any number of ranks and on any CPU.

Each parameter has a random stream of its own, whose key is the seed and the parameter's name. The stream is a counter (Philox),
so a rank draws the values of its shard and no others. transformers' initializers are recorded on a model without storage, and
replayed on the shards.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers.initialization as initializers
import xxhash
from torch import nn
from torch.overrides import TorchFunctionMode

log = logging.getLogger(__name__)

PIECE = 1 << 18  # elements drawn at once
ELEMENTWISE = ("zeros_", "ones_", "constant_", "uniform_", "normal_", "trunc_normal_")
SCALES = ("mul_", "div_")  # of a parameter by a number, in place
OTHERS = (*sorted(set(initializers.TORCH_INIT_FUNCTIONS) - set(ELEMENTWISE)), "copy_")


@dataclass(frozen=True)
class Draw:
    """A call of an initializer for a parameter, or for a part of it, or its scaling in place."""

    function: str  # of transformers.initialization, or of SCALES
    arguments: dict[str, Any]  # by name, without the tensor
    size: tuple[int, ...]  # of the part
    stride: tuple[int, ...]
    offset: int  # of the part's first element in the parameter

    @property
    def by_elements(self) -> bool:
        """True if each element can be drawn without the others."""
        contiguous = torch.empty(self.size, device="meta").stride() == self.stride
        return self.function in (*ELEMENTWISE, *SCALES) and contiguous


Recording = dict[str, list[Draw]]
Note = Callable[[str, torch.Tensor, dict[str, Any]], None]  # function, tensor, arguments


def record(model: Any, seed: int = 0) -> Recording | None:
    """Record how transformers initializes a model whose parameters are on the meta device; its buffers get their values.

    Values that an architecture draws by itself depend on the seed. Returns None if it does so in a way that cannot be recorded.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    draws: Recording = {name: [] for name in names.values()}
    versions = {name: parameter._version for name, parameter in model.named_parameters()}

    def note(function: str, tensor: torch.Tensor, arguments: dict[str, Any]) -> None:
        parameter = tensor if tensor._base is None else tensor._base
        if id(parameter) not in names or any(isinstance(value, torch.Tensor) and value.is_meta for value in arguments.values()):
            raise RuntimeError(f"{function} of a tensor that is not a parameter, or from one without values")
        draw = Draw(function, arguments, tuple(tensor.size()), tensor.stride(), int(tensor.storage_offset()))
        draws[names[id(parameter)]].append(draw)

    try:
        with torch.random.fork_rng(devices=[]), _replaced_initializers(note), _Scales(note):
            torch.manual_seed(seed)
            model.initialize_weights()
    except RuntimeError as error:  # torch's own: tensors on the meta device have no values
        log.info("first weights cannot be drawn in parts (%s)", error)
        return None
    for name, parameter in model.named_parameters():
        if not draws[name] or parameter._version != versions[name]:
            log.info("first weights cannot be drawn in parts (%s is not set by an initializer)", name)
            return None
    return draws


class _Scales(TorchFunctionMode):
    """Notes the scaling of tensors on the meta device by a number, instead of executing it. New tensors get values."""

    def __init__(self, note: Note) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: Any = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        name = {"__imul__": "mul_", "__itruediv__": "div_"}.get(function.__name__, function.__name__)
        if name in SCALES and arguments[0].is_meta and not isinstance(arguments[1], torch.Tensor):
            self._note(name, arguments[0], {"other": float(arguments[1])})
            return arguments[0]
        keywords = keywords or {}
        if str(keywords.get("device")) == "meta":  # small ones, of which the values of a parameter are computed
            keywords = {**keywords, "device": "cpu"}
        return function(*arguments, **keywords)


@contextmanager
def _replaced_initializers(note: Note) -> Iterator[None]:
    """Note calls for tensors on the meta device instead of executing them."""
    originals = {name: getattr(initializers, name) for name in (*ELEMENTWISE, *OTHERS)}

    def replacement(name: str) -> Callable[..., torch.Tensor]:
        original = originals[name]
        signature = inspect.signature(original)

        def initialize(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if not tensor.is_meta:
                return original(tensor, *args, **kwargs)  # type: ignore[no-any-return]
            bound = signature.bind(tensor, *args, **kwargs)
            bound.apply_defaults()
            note(name, tensor, dict(list(bound.arguments.items())[1:]))
            return tensor

        return initialize

    try:
        for name in originals:
            setattr(initializers, name, replacement(name))
        yield
    finally:
        for name, original in originals.items():
            setattr(initializers, name, original)


class DrawnWeights:
    """Random first weights of a model, from the seed."""

    in_parts = True

    def __init__(self, model: nn.Module, recording: Recording, seed: int) -> None:
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._recording, self._seed = recording, seed

    def shape(self, name: str) -> tuple[int, ...] | None:
        return tuple(self._shapes[name]) if name in self._shapes else None

    @torch.no_grad()
    def read(self, name: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """Return rows of a parameter, in fp32."""
        draws, key, shape = self._recording[name], f"{self._seed}:{name}", self._shapes[name]
        if not all(draw.by_elements for draw in draws):
            whole = _whole(draws, key, shape)
            return whole[begin:end] if shape else whole
        width = shape[1:].numel()
        last = shape.numel() if end is None else end * width
        values = torch.empty(last - begin * width)
        for first in range(0, len(values), PIECE):
            part = values[first : first + PIECE]
            part.copy_(_piece(draws, key, begin * width + first, begin * width + first + len(part)))
        return values.view(len(values) // max(width, 1), *shape[1:]) if shape else values[0]


def normal_numbers(key: str, begin: int, end: int) -> torch.Tensor:
    """Return the numbers from `begin` to `end` of a random stream with mean 0 and deviation 1, in fp64."""
    numbers: torch.Tensor = torch.special.ndtri(uniform_numbers(key, begin, end))
    return numbers


def _piece(draws: list[Draw], key: str, begin: int, end: int) -> torch.Tensor:
    """Return the elements from `begin` to `end` of a parameter, in fp32; later draws replace or scale earlier ones."""
    values = torch.empty(end - begin)
    for number, draw in enumerate(draws):
        first = max(begin, draw.offset)
        last = min(end, draw.offset + int(np.prod(draw.size)))
        if first < last and draw.function in SCALES:
            getattr(values[first - begin : last - begin], draw.function)(draw.arguments["other"])
        elif first < last:
            part = _elements(draw, f"{key}:{number}", first - draw.offset, last - draw.offset)
            values[first - begin : last - begin] = part
    return values


def _whole(draws: list[Draw], key: str, shape: torch.Size) -> torch.Tensor:
    """Return a whole parameter in fp32."""
    values = torch.empty(shape)
    for number, draw in enumerate(draws):
        part = values.as_strided(draw.size, draw.stride, draw.offset)
        if draw.function in SCALES:
            getattr(part, draw.function)(draw.arguments["other"])
        elif draw.by_elements:
            part.view(-1).copy_(_elements(draw, f"{key}:{number}", 0, part.numel()))
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(xxhash.xxh3_64_intdigest(f"{key}:{number}".encode()) >> 1)
                getattr(initializers, draw.function)(part, **draw.arguments)
    return values


def _elements(draw: Draw, key: str, begin: int, end: int) -> torch.Tensor:
    """Return elements of an elementwise draw."""
    arguments = draw.arguments
    normal: torch.Tensor
    match draw.function:
        case "zeros_":
            return torch.zeros(end - begin)
        case "ones_":
            return torch.ones(end - begin)
        case "constant_":
            return torch.full((end - begin,), float(arguments["val"]))
        case "uniform_":
            return uniform_numbers(key, begin, end).mul_(arguments["b"] - arguments["a"]).add_(arguments["a"])
        case "normal_":
            return normal_numbers(key, begin, end).mul_(arguments["std"]).add_(arguments["mean"])
        case _:  # trunc_normal_
            ends = torch.tensor([arguments["a"], arguments["b"]], dtype=torch.float64)
            low, high = torch.special.ndtr((ends - arguments["mean"]) / arguments["std"]).tolist()
            normal = torch.special.ndtri(uniform_numbers(key, begin, end).mul_(high - low).add_(low))
            return normal.mul_(arguments["std"]).add_(arguments["mean"]).clamp_(arguments["a"], arguments["b"])


def uniform_numbers(key: str, begin: int, end: int) -> torch.Tensor:
    """Return the numbers from `begin` to `end` of a stream of uniform ones between 0 and 1, both excluded, in fp64."""
    stream = np.random.Philox(key=xxhash.xxh3_128_intdigest(key.encode()))
    stream.advance(begin // 4)  # each count of Philox gives four numbers
    bits = stream.random_raw(end - begin + begin % 4)[begin % 4 :]
    return torch.from_numpy(((bits >> np.uint64(11)) + 0.5) * 2.0**-53)
