"""vLLM as a plug-in: a server in an environment of its own, because its packages conflict with those of this program."""

import json
import shutil
from pathlib import Path

from ropewalk.cluster.process.command import module_command
from ropewalk.jobs.inference.engines.engine import Capabilities, EngineOptions

EXECUTABLE = "executable"  # the key of `EngineOptions.extra`: the program `vllm` of that environment
KEY_VARIABLE = "VLLM_API_KEY"
_INSTALL = "python -m venv ENV && ENV/bin/pip install vllm"


class VllmEngine:
    """The command and requirements of vLLM."""

    name = "vllm"
    inherits_socket = False
    capabilities = Capabilities(json_schema=True, drafts=True, prompt_logprobs=True, prompt_cache=True, batches=True)

    def unavailable(self, options: EngineOptions) -> str | None:
        """Return a reason if the program `vllm` is neither configured nor on the PATH."""
        executable = options.extra.get(EXECUTABLE)
        if shutil.which(executable or "vllm") is not None:
            return None
        if executable is not None:
            return f"{EXECUTABLE}: {executable} is not a program here; install vLLM in an environment of its own: {_INSTALL}"
        return f"vllm is not on the PATH; install it in an environment of its own ({_INSTALL}) and set {EXECUTABLE}=ENV/bin/vllm"

    def refuses(self, model: Path) -> str | None:
        """Accept every model: vLLM itself reports what it cannot load."""
        return None

    def prepare(self, model: Path, options: EngineOptions) -> Path:
        """Return the directory itself."""
        return model

    def command(self, model: Path, options: EngineOptions) -> list[str]:
        """Return the command of its own server under a guard, because the server would outlive its parent."""
        command = [
            options.extra.get(EXECUTABLE, "vllm"),
            "serve",
            str(model),
            "--host",
            options.host,
            "--port",
            str(options.port),
        ]
        command += ["--served-model-name", options.name or model.name, "--max-num-seqs", str(options.slots)]
        command += ["--max-model-len", str(options.context)] if options.context is not None else []
        command += ["--tensor-parallel-size", str(options.gpus)] if (options.gpus or 0) > 1 else []
        if options.draft is not None:
            speculation = {"method": "draft_model", "model": str(options.draft), "num_speculative_tokens": options.draft_tokens}
            command += ["--speculative-config", json.dumps(speculation)]
        return module_command("ropewalk.jobs.inference.engines.guard", "--", *command)

    def environment(self, options: EngineOptions) -> dict[str, str]:
        """Return the token in vLLM's variable, and the number of CPU threads."""
        threads = {"OMP_NUM_THREADS": str(options.threads)} if options.threads is not None else {}
        return {**({KEY_VARIABLE: options.token} if options.token else {}), **threads}
