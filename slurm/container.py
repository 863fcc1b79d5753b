"""Commands wrapped into a container runtime: what srun starts when a profile names an image."""

from cluster.run_dir import RunDir
from slurm.profile import Container, SlurmProfile


def wrap(command: list[str], profile: SlurmProfile, run: RunDir) -> tuple[list[str], list[str]]:
    """(what a step runs, further options of srun) for a command of an agent."""
    if profile.container is None:
        return command, []
    image, mounts = profile.container, [*profile.container.mounts, str(run.path.parent)]
    if image.runtime == "pyxis":
        pairs = ",".join(f"{m}:{m}" if ":" not in m else m for m in mounts)
        options = [f"--container-image={image.image}", f"--container-mounts={pairs}", "--no-container-mount-home"]
        return command, [*options, *image.options]
    return [*_prefix(image, mounts), *command], []


def _prefix(image: Container, mounts: list[str]) -> list[str]:
    pairs = [m if ":" in m else f"{m}:{m}" for m in mounts]
    if image.runtime in {"apptainer", "singularity"}:
        return [image.runtime, "exec", *(f"--bind={p}" for p in pairs), *image.options, image.image]
    if image.runtime == "charliecloud":
        return ["ch-run", *(f"--bind={p}" for p in pairs), *image.options, image.image, "--"]
    volumes = [f"--volume={p}" for p in pairs]
    return ["podman", "run", "--rm", "--network=host", "--ipc=host", *volumes, *image.options, image.image]
