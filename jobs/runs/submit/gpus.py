"""GPUs of jobs that compute on a model and set no `gpus`: taken on this machine, refused with the choice on a cluster."""

from collections.abc import Sequence

from ropewalk.cluster.backends.base import Backend, GpuSupply
from ropewalk.cluster.backends.profiles import load_backend
from ropewalk.cluster.config import JobConfig, UnsetGpus
from ropewalk.cluster.config_reader import load_config
from ropewalk.cluster.errors import ConfigError, RopewalkError
from ropewalk.cluster.gpus import torch_without_cuda
from ropewalk.cluster.text import counted

USUAL_GPUS = 8  # of a node whose GPUs are unknown


def set_gpus(backend: Backend, configs: Sequence[JobConfig], *, waits: bool) -> tuple[list[JobConfig], str]:
    """Return the configurations of a submission with the GPUs of this machine that they take, and a notice for the user.

    `waits`: the submission starts after other runs, and the processes that occupy GPUs now may be theirs. Raises ConfigError with
    both settings to choose from if a cluster has GPUs, or if too few of this machine's are unoccupied.
    """
    parts = configs[0].unset_gpus()  # runs of one submission share their resources
    if not parts:
        return list(configs), ""
    cluster = configs[0].children_cluster()
    try:
        supply = (load_backend(cluster) if cluster else backend).gpu_supply()
    except RopewalkError as error:
        return list(configs), (
            f"{_keys(parts)} not set, so no GPU is requested, and it is unknown whether the cluster has any ({error});"
            f" {_remedies(parts, USUAL_GPUS)}"
        )
    if not supply.per_node:
        return list(configs), ""
    if supply.unoccupied is None:
        have = f"{supply.owner} {counted(supply.per_node, 'GPU')}"
        raise ConfigError(f"{_keys(parts)} not set, but {have}; {_remedies(parts, supply.per_node)}")
    if version := torch_without_cuda():
        return list(
            configs
        ), f"computes on the CPU: torch {version} is built without CUDA; install a build with CUDA for the GPUs"
    return _take(configs, parts, supply, supply.per_node if waits else len(supply.unoccupied))


def _take(
    configs: Sequence[JobConfig], parts: Sequence[UnsetGpus], supply: GpuSupply, usable: int
) -> tuple[list[JobConfig], str]:
    """Set the GPUs of each part to its share of the `usable` ones of this machine. Raises ConfigError if they are too few."""
    needed = max((part.resources.ranks_per_node or 1) * part.resources.nodes.most for part in parts)
    if usable < needed:
        free = f"{supply.owner} {counted(supply.per_node, 'GPU')}, of which {usable} are not in use and {needed} are needed"
        raise ConfigError(f"{_keys(parts)} not set: {free}; {_remedies(parts, supply.per_node, shared=True)}")
    overrides = [override for part in parts for override in _overrides(part, usable // part.resources.nodes.most)]
    taken = [load_config(type(each), each.model_dump(mode="json", exclude_unset=True), overrides) for each in configs]
    devices = ", ".join(supply.unoccupied or ())
    return (
        taken,
        f"{' '.join(overrides)}, of the GPUs that no process occupies ({devices}); {_on_cpu(parts)} to compute on the CPU",
    )


def _overrides(part: UnsetGpus, per_node: int) -> list[str]:
    """Return the overrides with which a part uses up to `per_node` GPUs of each of its nodes."""
    ranks = part.resources.ranks_per_node
    gpus = min(per_node, part.most or per_node, ranks or per_node)
    fewer_ranks = [f"{part.section}.ranks_per_node={gpus}"] if ranks is not None and ranks > gpus else []
    return [f"{part.section}.gpus={gpus}", *fewer_ranks, *part.others]


def _keys(parts: Sequence[UnsetGpus]) -> str:
    return f"{', '.join(f'{part.section}.gpus' for part in parts)}:"


def _remedies(parts: Sequence[UnsetGpus], per_node: int, *, shared: bool = False) -> str:
    """Return the two choices. `shared`: all nodes of a part are on one machine with `per_node` GPUs."""
    overrides: list[str] = []
    for part in parts:
        nodes = part.resources.nodes.most if shared else 1
        overrides += [
            *([f"{part.section}.nodes=1"] if nodes > per_node else []),
            *_overrides(part, per_node // nodes or per_node),
        ]
    return f"set {' '.join(overrides)} to compute on GPUs, or {_on_cpu(parts)} to compute on the CPU"


def _on_cpu(parts: Sequence[UnsetGpus]) -> str:
    return " ".join(f"{part.section}.gpus=0" for part in parts)
