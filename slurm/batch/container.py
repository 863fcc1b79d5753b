"""Wraps an agent's command for a container runtime if the profile names an image."""

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.secrets.variables import secrets_folder
from ropewalk.slurm.profile import Container, SlurmProfile


def wrap(command: list[str], profile: SlurmProfile, run: RunDir) -> tuple[list[str], list[str]]:
    """Wrap an agent's command so that it starts in the run's directory: (command of a step, further options of srun)."""
    image = profile.container
    if image is None:
        return command, []
    mounts = [mount if ":" in mount else f"{mount}:{mount}" for mount in (*image.mounts, str(run.path.parent))]
    if run.record.get("secrets"):
        folder = secrets_folder(run.record)
        mounts.append(f"{folder}:{folder}")
    pairs = list(dict.fromkeys(mounts))
    if image.runtime == "pyxis":
        options = [f"--container-image={image.image}", f"--container-mounts={','.join(pairs)}"]
        return command, [*options, f"--container-workdir={run.path}", "--no-container-mount-home", *image.options]
    return [*_prefix(image, pairs, run), *command], []


def _prefix(image: Container, pairs: list[str], run: RunDir) -> list[str]:
    binds = [f"--bind={pair}" for pair in pairs]
    if image.runtime in {"apptainer", "singularity"}:
        return [image.runtime, "exec", *binds, f"--pwd={run.path}", *_gpus(image, run), *image.options, image.image]
    if image.runtime == "charliecloud":
        return ["ch-run", *binds, f"--cd={run.path}", *image.options, image.image, "--"]
    volumes = [f"--volume={pair}" for pair in pairs]
    # podman passes no environment variables by itself; those of the image, such as PATH, have priority
    shared = ["--network=host", "--ipc=host", "--env-host", f"--workdir={run.path}"]
    return ["podman", "run", "--rm", *shared, *volumes, *image.options, image.image]


def _gpus(image: Container, run: RunDir) -> list[str]:
    """Return the option that makes NVIDIA GPUs visible in apptainer; not needed if the profile has --rocm for AMD GPUs."""
    wanted = (run.record.get("resources") or {}).get("gpus")
    return ["--nv"] if wanted and not {"--nv", "--nvccli", "--rocm"} & set(image.options) else []
