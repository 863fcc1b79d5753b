"""vLLM as a plug-in: a server of an environment of its own, for its packages do not go with those of this program."""

import json
import shutil
from pathlib import Path

from ropewalk.cluster.process.command import module_command
from ropewalk.jobs.inference.engines.engine import Capabilities, EngineOptions

EXECUTABLE = "executable"  # the key of `EngineOptions.extra`: the program `vllm` of that environment
KEY_VARIABLE = "VLLM_API_KEY"
_INSTALL = "python -m venv ENV && ENV/bin/pip install vllm"


class VllmEngine:
    """How vLLM is started."""

    name = "vllm"
    inherits_socket = False
    capabilities = Capabilities(json_schema=True, drafts=True, prompt_logprobs=True, prompt_cache=True, batches=True)

    def unavailable(self, options: EngineOptions) -> str | None:
        """That there is no program `vllm` where the configuration says, or on the PATH."""
        named = options.extra.get(EXECUTABLE)
        if shutil.which(named or "vllm") is not None:
            return None
        if named is not None:
            return f"{EXECUTABLE}: {named} is not a program here; vLLM gets an environment of its own: {_INSTALL}"
        return f"vllm is not on the PATH; give it an environment of its own ({_INSTALL}), and name ENV/bin/vllm as {EXECUTABLE}"

    def refuses(self, model: Path) -> str | None:
        """Nothing: vLLM itself says what it cannot load."""
        return None

    def prepare(self, model: Path, options: EngineOptions) -> Path:
        """Load the directory itself."""
        return model

    def command(self, model: Path, options: EngineOptions) -> list[str]:
        """Its own server, which a process of ours watches: it would outlive whoever started it."""
        words = [options.extra.get(EXECUTABLE, "vllm"), "serve", str(model), "--host", options.host, "--port", str(options.port)]
        words += ["--served-model-name", options.name or model.name, "--max-num-seqs", str(options.slots)]
        words += ["--max-model-len", str(options.context)] if options.context is not None else []
        words += ["--tensor-parallel-size", str(options.gpus)] if (options.gpus or 0) > 1 else []
        if options.draft is not None:
            guessing = {"method": "draft_model", "model": str(options.draft), "num_speculative_tokens": options.draft_tokens}
            words += ["--speculative-config", json.dumps(guessing)]
        return module_command("ropewalk.jobs.inference.engines.guard", "--", *words)

    def environment(self, options: EngineOptions) -> dict[str, str]:
        """The token in the variable that vLLM reads; how many threads compute on a CPU."""
        threads = {"OMP_NUM_THREADS": str(options.threads)} if options.threads is not None else {}
        return {**({KEY_VARIABLE: options.token} if options.token else {}), **threads}
