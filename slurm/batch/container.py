"""Commands wrapped into a container runtime: what srun starts when a profile names an image."""

from ropewalk.cluster.run.directory import RunDir
from ropewalk.slurm.profile import Container, SlurmProfile


def wrap(command: list[str], profile: SlurmProfile, run: RunDir) -> tuple[list[str], list[str]]:
    """Wrap an agent's command, which starts in the run's directory: (what a step runs, further options of srun)."""
    image = profile.container
    if image is None:
        return command, []
    mounts = [mount if ":" in mount else f"{mount}:{mount}" for mount in (*image.mounts, str(run.path.parent))]
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
    # of the variables podman hands on none by itself; the image's own, such as PATH, win
    shared = ["--network=host", "--ipc=host", "--env-host", f"--workdir={run.path}"]
    return ["podman", "run", "--rm", *shared, *volumes, *image.options, image.image]


def _gpus(image: Container, run: RunDir) -> list[str]:
    """The option without which an apptainer container sees no NVIDIA GPU; --rocm in the profile says that they are AMD's."""
    wanted = (run.record.get("resources") or {}).get("gpus")
    return ["--nv"] if wanted and not {"--nv", "--nvccli", "--rocm"} & set(image.options) else []
