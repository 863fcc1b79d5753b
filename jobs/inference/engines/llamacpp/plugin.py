"""llama.cpp as a plug-in: the engine of CPUs, for models that GGUF knows."""

import json
import os
import subprocess
from pathlib import Path

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.process.command import module_command
from ropewalk.jobs.inference.engines.engine import TOKEN_VARIABLE, Capabilities, EngineOptions
from ropewalk.jobs.inference.engines.process import our_command
from ropewalk.jobs.inference.engines.requirements import missing_packages

DEFAULT_TYPE = "F16"  # smaller and faster than F32; llama.cpp rounds activations to it, so that log-probabilities move a little
TYPE = "type"  # the key of `EngineOptions.extra` for another one
ARCHITECTURES = ("llama", "mistral")


class LlamaCppEngine:
    """How llama.cpp is started, and the GGUF file that it loads."""

    name = "llamacpp"
    inherits_socket = True

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; JSON schemas where llguidance is installed, which checks them."""
        schemas = missing_packages("llguidance") is None
        return Capabilities(continues=True, json_schema=schemas, prompt_cache=True, drafts=True, batches=True)

    def unavailable(self, options: EngineOptions) -> str | None:
        """What of it is not installed."""
        return missing_packages("xllamacpp", "gguf", "starlette", "uvicorn")

    def refuses(self, model: Path) -> str | None:
        """Architectures that GGUF does not know."""
        if model.suffix == ".gguf":
            return None
        try:
            kind = json.loads((model / "config.json").read_text()).get("model_type")
        except (OSError, ValueError, AttributeError) as error:
            return f"{model / 'config.json'} cannot be read: {error}"
        return None if kind in ARCHITECTURES else f"it is of the architecture {kind}; known are {', '.join(ARCHITECTURES)}"

    def prepare(self, model: Path, options: EngineOptions) -> Path:
        """Convert the model to GGUF, once, beside it; a GGUF file stays as it is. Raises ConfigError."""
        if model.suffix == ".gguf":
            return model
        type_name = options.extra.get(TYPE, DEFAULT_TYPE)
        words = module_command("ropewalk.jobs.inference.engines.llamacpp.convert", str(model), type_name)
        done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode != 0:
            last = (done.stderr.strip() or "no message").splitlines()[-1].removeprefix("error: ")
            raise ConfigError(f"engine llamacpp cannot load {model}: {last}")
        return Path(done.stdout.strip().splitlines()[-1])

    def command(self, model: Path, options: EngineOptions) -> list[str]:
        """Our own process."""
        return our_command("ropewalk.jobs.inference.engines.llamacpp", model, options)

    def environment(self, options: EngineOptions) -> dict[str, str]:
        """The token; torch is not needed, of which transformers would warn."""
        return {TOKEN_VARIABLE: options.token or "", "OMP_NUM_THREADS": "1", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
