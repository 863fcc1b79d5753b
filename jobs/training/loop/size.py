"""Size of a model that is not built: its parameters, counted on torch's meta device by a process of its own.

Usage: python -m ropewalk.jobs.training.loop.size, with a SizeRequest on standard input. It imports torch, which takes seconds
and which a submission never needs.
"""

import subprocess
import sys
from typing import Any

from ropewalk.cluster.config import Section
from ropewalk.cluster.process.command import module_command
from ropewalk.jobs.training.loop.config import LoraConfig, ModelConfig

LIMIT_SECONDS = 120.0


class SizeRequest(Section):
    """A model, and the vocabulary that a preset takes from its data."""

    model: ModelConfig
    fingerprint: dict[str, Any] | None = None  # of the model of a run
    vocabulary: int
    seq_len: int
    lora: LoraConfig | None = None


class ModelSize(Section):
    """Numbers of parameters; tied weights count once."""

    parameters: int
    trained: int
    matrices: int  # trained numbers in matrices of the layers, which Muon updates

    def checkpoint_bytes(self, *, muon: bool, moment_bytes: int, average: bool) -> int:
        """Return the bytes of the trained weights, the optimizer's state (Adam: two moments, Muon: one), and the average."""
        moments = 2 * self.trained - (self.matrices if muon else 0)
        return self.trained * (8 if average else 4) + moments * moment_bytes


def model_size(request: SizeRequest) -> ModelSize | str:
    """Return the size of a model, or the reason why it is unknown."""
    try:
        answer = subprocess.run(
            module_command("ropewalk.jobs.training.loop.size"),
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


def main() -> None:
    """Count the parameters of the requested model."""
    import torch

    from ropewalk.jobs.training.loop.bare_model import bare_model
    from ropewalk.jobs.training.loop.model_config import config_from_fingerprint, unchecked_config
    from ropewalk.jobs.training.loop.optimizer import layer_matrices

    request = SizeRequest.model_validate_json(sys.stdin.read())
    sizes = {"vocabulary": request.vocabulary, "end_of_document": 0, "seq_len": request.seq_len}
    config = config_from_fingerprint(request.fingerprint) if request.fingerprint else unchecked_config(request.model, **sizes)
    with torch.device("meta"):
        model = bare_model(config, "causal_lm")
    if request.lora is not None:
        from ropewalk.jobs.training.loop.lora import lora_adapter

        model = lora_adapter(request.lora, 0)(model)
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    size = ModelSize(
        parameters=sum(count for count, _ in counts),
        trained=sum(count for count, trained in counts if trained),
        matrices=sum(matrix.numel() for matrix in layer_matrices(model)),
    )
    sys.stdout.write(f"{size.model_dump_json()}\n")


if __name__ == "__main__":
    main()
