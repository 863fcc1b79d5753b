"""llama.cpp as a plug-in: the engine of CPUs, for architectures that GGUF supports."""

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
    """The command and requirements of llama.cpp, and the GGUF file that it loads."""

    name = "llamacpp"
    inherits_socket = True

    @property
    def capabilities(self) -> Capabilities:
        """Features of llama.cpp; JSON schemas need llguidance, which validates them."""
        schemas = missing_packages("llguidance") is None
        return Capabilities(continues=True, json_schema=schemas, prompt_cache=True, drafts=True, batches=True)

    def unavailable(self, options: EngineOptions) -> str | None:
        """Return the missing packages."""
        return missing_packages("xllamacpp", "gguf", "starlette", "uvicorn")

    def refuses(self, model: Path) -> str | None:
        """Return a reason for architectures that GGUF does not support."""
        if model.suffix == ".gguf":
            return None
        try:
            kind = json.loads((model / "config.json").read_text()).get("model_type")
        except (OSError, ValueError, AttributeError) as error:
            return f"{model / 'config.json'} cannot be read: {error}"
        return None if kind in ARCHITECTURES else f"its architecture is {kind}; supported are {', '.join(ARCHITECTURES)}"

    def prepare(self, model: Path, options: EngineOptions) -> Path:
        """Convert the model to GGUF once, beside it; a GGUF file is returned as it is. Raises ConfigError."""
        if model.suffix == ".gguf":
            return model
        type_name = options.extra.get(TYPE, DEFAULT_TYPE)
        command = module_command("ropewalk.jobs.inference.engines.llamacpp.convert", str(model), type_name)
        result = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if result.returncode != 0:
            last = (result.stderr.strip() or "no message").splitlines()[-1].removeprefix("error: ")
            raise ConfigError(f"engine llamacpp cannot load {model}: {last}")
        return Path(result.stdout.strip().splitlines()[-1])

    def command(self, model: Path, options: EngineOptions) -> list[str]:
        return our_command("ropewalk.jobs.inference.engines.llamacpp", model, options)

    def environment(self, options: EngineOptions) -> dict[str, str]:
        """Return the token; torch is not imported, of which transformers would warn."""
        return {TOKEN_VARIABLE: options.token or "", "OMP_NUM_THREADS": "1", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
