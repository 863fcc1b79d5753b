"""The reference engine as a plug-in: it runs wherever Ropewalk does."""

from pathlib import Path

from ropewalk.jobs.inference.engines.engine import TOKEN_VARIABLE, Capabilities, EngineOptions
from ropewalk.jobs.inference.engines.process import our_command
from ropewalk.jobs.inference.engines.requirements import missing_packages


class TransformersEngine:
    """How the reference engine is started."""

    name = "transformers"
    inherits_socket = True

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; JSON schemas where llguidance is installed."""
        return Capabilities(continues=True, prompt_logprobs=True, json_schema=missing_packages("llguidance") is None)

    def unavailable(self, options: EngineOptions) -> str | None:
        """What of its HTTP server is not installed."""
        return missing_packages("starlette", "uvicorn")

    def refuses(self, model: Path) -> str | None:
        """Nothing: what transformers cannot load says so when it is loaded."""
        return None

    def prepare(self, model: Path, options: EngineOptions) -> Path:
        """Load the directory itself."""
        return model

    def command(self, model: Path, options: EngineOptions) -> list[str]:
        """Our own process."""
        return our_command("ropewalk.jobs.inference.engines.transformers", model, options)

    def environment(self, options: EngineOptions) -> dict[str, str]:
        """The token, and how many threads compute."""
        threads = {"OMP_NUM_THREADS": str(options.threads)} if options.threads is not None else {}
        return {TOKEN_VARIABLE: options.token or "", **threads}
