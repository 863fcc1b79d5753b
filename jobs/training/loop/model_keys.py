"""Keys of a model: where its weights come from, its adapter, its quantization grid."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ropewalk.cluster.input_paths import ModelPath
from ropewalk.cluster.section import Section

Preset = Literal["tiny", "small", "smollm-135m", "150m", "400m", "1b", "3b", "8b"]
PRESETS = (
    "tiny (0.3 M weights), small (19 M) or smollm-135m (106 M), or of one shape 150m (135 M), 400m (396 M), 1b (1082 M),"
    " 3b (3171 M) or 8b (7798 M), besides the embeddings of the tokens"
)


def require_one(key: str, section: Section, *names: str) -> None:
    """Raise ValueError unless exactly one of these keys of the section, which is the value of `key`, is set."""
    values = [name for name in names if getattr(section, name) is not None]
    choice = f"set exactly one of {', '.join(names[:-1])} and {names[-1]}"
    if len(values) > 1:
        last = getattr(section, values[-1])
        whole = f"'{key}={{{values[-1]}: {last if isinstance(last, str) else '...'}}}'"
        raise ValueError(f"{choice}, not {' and '.join(values)}; to replace what a job file sets, write {whole}")
    if not values:
        raise ValueError(choice)


class ModelConfig(Section):
    """Exactly one of: a preset, a Hugging Face directory, a Hugging Face configuration, a run that trained a model."""

    preset: Preset | None = Field(default=None, description=f"a built-in model size: {PRESETS}")
    path: ModelPath | None = Field(
        default=None,
        description="a Hugging Face directory, or a name on the hub (ORG/NAME[@REVISION]): its configuration and weights",
    )
    config: dict[str, Any] | None = Field(default=None, description="a Hugging Face configuration with model_type")
    run: str | None = Field(default=None, description="id or directory of a run whose trained model to start from, at step 0")
    step: int | None = Field(default=None, ge=1, description="with run: the checkpoint's step; unset: its newest complete one")

    @model_validator(mode="after")
    def _one(self) -> Self:
        require_one("model", self, "preset", "path", "config", "run")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config needs model_type, for example llama")
        if self.step is not None and self.run is None:
            raise ValueError("step names a checkpoint of run; set run too")
        return self


class LoraConfig(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685) beside frozen weights: only they are trained and checkpointed."""

    rank: int = Field(default=16, ge=1, description="rank of the two matrices beside each weight")
    alpha: float | None = Field(
        default=None, gt=0, description="scale of the adapter, divided by the rank; unset: twice the rank"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of the adapter's input")
    targets: Literal["all-linear"] | list[str] = Field(
        default="all-linear",
        description="names of layers to adapt, for example [q_proj, v_proj]; all-linear: all linear layers but the head",
    )
    dora: bool = Field(
        default=False, description="train the magnitude of each weight separately from its direction (DoRA, arXiv 2402.09353)"
    )
    rslora: bool = Field(default=False, description="divide alpha by the square root of the rank (rsLoRA, arXiv 2312.03732)")


class GridConfig(Section):
    """A quantization grid for the matrices of a model's layers: integers times a scale."""

    type: Literal["int8", "int4"] = Field(
        default="int8", description="int8: one scale per row; int4: one scale per group of a row"
    )
    group_size: int = Field(default=32, ge=1, description="int4: number of weights that share a scale")


def parse_grid(value: Any) -> Any:
    """Accept a bare type as a grid with default options: `qat: int4`."""
    return {"type": value} if isinstance(value, str) else value
