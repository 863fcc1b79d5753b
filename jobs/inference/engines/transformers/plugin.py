"""The reference engine as a plug-in: it runs wherever Ropewalk does."""

from pathlib import Path

from ropewalk.jobs.inference.engines.engine import TOKEN_VARIABLE, Capabilities, EngineOptions
from ropewalk.jobs.inference.engines.process import our_command
from ropewalk.jobs.inference.engines.requirements import missing_packages


class TransformersEngine:
    """The command and requirements of the reference engine."""

    name = "transformers"
    inherits_socket = True

    @property
    def capabilities(self) -> Capabilities:
        """Features of the reference engine; JSON schemas need llguidance."""
        return Capabilities(continues=True, prompt_logprobs=True, json_schema=missing_packages("llguidance") is None)

    def unavailable(self, options: EngineOptions) -> str | None:
        """Return the missing packages of its HTTP server."""
        return missing_packages("starlette", "uvicorn")

    def refuses(self, model: Path) -> str | None:
        """Accept every model: loading reports what transformers does not support."""
        return None

    def prepare(self, model: Path, options: EngineOptions) -> Path:
        """Return the directory itself."""
        return model

    def command(self, model: Path, options: EngineOptions) -> list[str]:
        return our_command("ropewalk.jobs.inference.engines.transformers", model, options)

    def environment(self, options: EngineOptions) -> dict[str, str]:
        """Return the token and the number of threads."""
        threads = {"OMP_NUM_THREADS": str(options.threads)} if options.threads is not None else {}
        return {TOKEN_VARIABLE: options.token or "", **threads}
