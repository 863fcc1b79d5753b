"""Apply a variant's methods one after the other, and write the result: a Hugging Face directory or a GGUF file."""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.inference.gguf.ggml import Float32s
from ropewalk.jobs.inference.gguf.gguf import Calibration, write_gguf
from ropewalk.jobs.inference.gguf.gguf_types import GGUF_TYPES, is_quantized, unfit
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.models.compress.artifacts import Artifact, require_torchao, save
from ropewalk.jobs.models.compress.config import CompressConfig
from ropewalk.jobs.models.compress.gptq import gptq_as_gguf, gptq_on_grid
from ropewalk.jobs.models.compress.methods import SPARSE, GgufConfig, Method, compensates
from ropewalk.jobs.models.compress.quantize import by_compressed_tensors, by_torchao
from ropewalk.jobs.models.compress.sparsify import importance, sparsify, zeros
from ropewalk.jobs.training.loop.architecture.grid import check_grid
from ropewalk.jobs.training.pruning.activations import calibration_batches
from ropewalk.jobs.training.pruning.architecture import Shape
from ropewalk.jobs.training.pruning.student import prune

log = logging.getLogger(__name__)

Recover = Callable[[Any, Sequence[Method], Path], Any]  # (model, methods up to this one, folder) → the trained model


@dataclass(frozen=True, kw_only=True)
class Builder:
    """Builds variants of one model."""

    config: CompressConfig
    dense: OpenModel
    recover: Recover
    _importances: dict[tuple[str, ...], Mapping[str, Float32s]] = field(default_factory=dict)  # by the methods before gguf

    def check(self) -> None:
        """Raise ConfigError early for a method that this model or machine does not support."""
        for name, methods in self.config.all_variants().items():
            for method in methods:
                try:
                    self._check(method)
                except ConfigError as error:
                    raise ConfigError(f"variants: {name}: {error}") from None

    def _check(self, method: Method) -> None:
        if method.name == "torchao":
            require_torchao()
        if method.name == "gguf" and (reason := unfit(self.dense.model.config.to_dict())) is not None:
            raise ConfigError(f"gguf: {reason}")
        if method.name in {"prune", *SPARSE}:
            shape = Shape.of(self.dense.model.config)  # raises ConfigError for architectures that cannot be cut
            if method.prune is not None:
                shape.cut(method.prune)

    def build(self, methods: Sequence[Method], folder: Path) -> Artifact:
        """Apply the methods to a copy of the model and write the result. Raises ConfigError; StopRequested."""
        if (existing := Artifact.read(folder)) is not None:
            return existing
        folder.mkdir(parents=True, exist_ok=True)
        model = copy.deepcopy(self.dense.model)
        for index, method in enumerate(methods):
            if method.name in SPARSE:
                sparsify(model, method.name, method.options, self._text())
            elif method.prune is not None:
                model = prune(model, method.prune, self._text()).model
            elif method.recover is not None:
                model = self.recover(model, methods[: index + 1], folder)
        artifact = self._write(model, methods, zeros(model), folder)
        artifact.write(folder)
        return artifact

    def _write(self, model: Any, methods: Sequence[Method], zero: float, folder: Path) -> Artifact:
        last = methods[-1]
        opened = OpenModel(model=model, tokenizer=self.dense.tokenizer, name=self.dense.name, step=self.dense.step, max_length=0)
        if last.gguf is not None:
            calibration = self._calibration(model, methods, last.gguf)
            written = write_gguf(opened, folder / f"model-{last.gguf.type}.gguf", last.gguf.type, calibration)
            tensors = ", ".join(f"{count} {form}" for form, count in sorted(written.tensors.items()))
            verified = written.verified
            largest, mean = verified.max_log_prob_difference, verified.mean_log_prob_difference
            deviation = f"log-probabilities within {largest:.2g} of transformers, {mean:.2g} in the mean"
            return Artifact(engine="llama.cpp", path=written.path, zeros=zero, notes=(f"tensors: {tensors}", deviation))
        if last.torchao is not None:
            notes = ("int4 is stored in bytes on CPUs",) if last.torchao.type == "int4" else ()
            path = by_torchao(model, opened, last.torchao, folder)
        elif last.compressed_tensors is not None:
            check_grid(model, last.compressed_tensors)
            if compensates(methods):
                gptq_on_grid(model, last.compressed_tensors, self._text())
            path, notes = by_compressed_tensors(model, opened, last.compressed_tensors, folder), ()
        else:
            dtype = last.cast.dtype if last.cast is not None else "float32"
            path, notes = save(model.to(getattr(torch, dtype)), opened, folder), ()
        return Artifact(engine="transformers", path=path, zeros=zero, notes=notes)

    def _calibration(self, model: Any, methods: Sequence[Method], gguf: GgufConfig) -> Calibration:
        weights = self._importance(model, methods[:-1]) if gguf.importance and is_quantized(gguf.type) else {}
        kind = GGUF_TYPES[gguf.type]
        return Calibration(importance=weights, encoded=gptq_as_gguf(model, kind, self._text()) if compensates(methods) else {})

    def _importance(self, model: Any, before: Sequence[Method]) -> Mapping[str, Float32s]:
        key = tuple(method.model_dump_json(exclude_none=True) for method in before)
        if key not in self._importances:
            self._importances.clear()  # files of the same model are built in succession
            self._importances[key] = importance(model, self._text())
        return self._importances[key]

    def _text(self) -> Iterator[torch.Tensor]:
        calibration = self.config.calibration
        return calibration_batches(
            calibration.data or self.config.data,
            seq_len=calibration.seq_len or self.config.seq_len,
            sequences=calibration.sequences,
            seed=calibration.seed,
            micro_batch=calibration.micro_batch,
        )
