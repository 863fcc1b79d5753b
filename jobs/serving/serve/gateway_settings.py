"""A serving run's keys as the settings of its gateway."""

from pathlib import Path

from ropewalk.cluster.run.directory import RunDir
from ropewalk.jobs.serving.serve.config import ServeConfig
from ropewalk.jobs.serving.serve.files import LocalFiles
from ropewalk.jobs.serving.serve.gateway.settings import GatewaySettings


def gateway_settings(config: ServeConfig, run: RunDir, local: LocalFiles) -> GatewaySettings:
    """What the gateway is told; it has no secret."""
    capture = config.capture.model_dump(mode="json") if config.capture is not None else None
    return GatewaySettings(
        host=config.host,
        port=config.port,
        routes=local.routes,
        address_file=local.address,
        load_file=local.load,
        token_variable=config.auth.variable if config.auth is not None else None,
        token_file=Path(config.auth.file) if config.auth is not None and config.auth.file else None,
        deadline_seconds=config.deadline_seconds,
        queue_per_slot=config.queue_per_slot,
        cache_bytes=config.cache_mib * 2**20,
        orphan_seconds=2.0,
        feedback_folder=run.path / "feedback",
        capture=capture,
    )
