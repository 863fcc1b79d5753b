"""Size of a model that is not built: its parameters and activations, on torch's meta device in a process of its own.

Usage: python -m ropewalk.jobs.training.loop.forecast.size, with a SizeRequest on standard input. It imports torch, which takes
seconds and which a submission never needs.
"""

import subprocess
import sys
from typing import Any

from ropewalk.cluster.process.command import module_command
from ropewalk.cluster.section import Section
from ropewalk.jobs.training.loop.forecast.memory import MODES, ModelShape
from ropewalk.jobs.training.loop.model_keys import LoraConfig, ModelConfig

LIMIT_SECONDS = 120.0


class SizeRequest(Section):
    """A model, and the vocabulary that a preset takes from its data."""

    model: ModelConfig
    fingerprint: dict[str, Any] | None = None  # of the model of a run
    frozen: "SizeRequest | None" = None  # the model beside it
    vocabulary: int
    seq_len: int
    lora: LoraConfig | None = None
    bf16: bool = False  # format of computation
    gpu: bool = False


class ModelSize(Section):
    """Numbers of parameters; tied weights count once."""

    parameters: int
    trained: int
    matrices: int  # trained numbers in matrices of the layers, which Muon updates
    shape: ModelShape | None = None
    device: tuple[str, int] | None = None  # name and bytes of the GPU that is visible here

    def checkpoint_bytes(self, *, muon: bool, moment_bytes: int, average: bool) -> int:
        """Return the bytes of the trained weights, the optimizer's state (Adam: two moments, Muon: one), and the average."""
        moments = 2 * self.trained - (self.matrices if muon else 0)
        return self.trained * (8 if average else 4) + moments * moment_bytes


def model_size(request: SizeRequest) -> ModelSize | str:
    """Return the size of a model, or the reason why it is unknown."""
    try:
        answer = subprocess.run(
            module_command("ropewalk.jobs.training.loop.forecast.size"),
            input=request.model_dump_json(),
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return f"not counted within {LIMIT_SECONDS:.0f} s"
    except subprocess.CalledProcessError as error:
        return f"not counted: {error.stderr.strip().splitlines()[-1] if error.stderr.strip() else error}"
    return ModelSize.model_validate_json(answer.stdout.splitlines()[-1])


def measure(request: SizeRequest) -> ModelSize:
    """Measure the requested model in this process, which imports torch."""
    import torch

    from ropewalk.jobs.training.loop.architecture.bare_model import bare_model
    from ropewalk.jobs.training.loop.architecture.model_config import config_from_fingerprint, unchecked_config
    from ropewalk.jobs.training.loop.forecast.measure import fsdp_units, measure_model
    from ropewalk.jobs.training.loop.update.optimizer import layer_matrices

    sizes = {"vocabulary": request.vocabulary, "end_of_document": 0, "seq_len": request.seq_len}

    def model_of(request: SizeRequest) -> Any:
        fingerprint = request.fingerprint
        config = config_from_fingerprint(fingerprint) if fingerprint else unchecked_config(request.model, **sizes)
        with torch.device("meta"):
            return bare_model(config, "causal_lm")

    model = model_of(request)
    if request.lora is not None:
        from ropewalk.jobs.training.loop.weights.lora import lora_adapter

        model = lora_adapter(request.lora, 0)(model)
    matrices = sum(matrix.numel() for matrix in layer_matrices(model))
    shape = measure_model(model, request.seq_len, MODES, bf16=request.bf16, gpu=request.gpu)
    if request.frozen is not None:
        shape = shape.model_copy(update={"frozen": fsdp_units(model_of(request.frozen).requires_grad_(False))})
    device = None
    if request.gpu and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        device = properties.name, properties.total_memory
    return ModelSize(
        parameters=shape.numbers(),
        trained=shape.numbers(trained_only=True),
        matrices=matrices,
        shape=shape,
        device=device,
    )


def main() -> None:
    """Answer the request on the standard input."""
    request = SizeRequest.model_validate_json(sys.stdin.read())
    sys.stdout.write(f"{measure(request).model_dump_json()}\n")


if __name__ == "__main__":
    main()
