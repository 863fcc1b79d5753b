"""Fill the tensors of this rank from a checkpoint of any mesh; copies of a piece are read once and broadcast."""

import torch
import torch.distributed as dist

from ropewalk.cluster.errors import CheckpointError, RopewalkError, StorageError
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.checkpoints.manifest import CheckpointManifest
from ropewalk.sharding.checkpoints.read_plan import PartReader, ReadPlan
from ropewalk.sharding.checkpoints.staging import local_tensor
from ropewalk.sharding.checkpoints.state import State
from ropewalk.sharding.group import REPLICATE, Group
from ropewalk.sharding.placement import coordinates, pieces, placement_of


def mesh_of(group: Group) -> dict[str, int]:
    """Return the size of each axis of the mesh, whose ranks must be numbered row by row."""
    names, shape = group.mesh.mesh_dim_names or (), tuple(group.mesh.shape)
    assert coordinates(shape, group.rank) == tuple(group.mesh.get_coordinate() or ())
    return dict(zip(names, shape, strict=True))


def require_same_tensors(folder: StoragePath, manifest: CheckpointManifest, state: State) -> None:
    """Raise CheckpointError unless the checkpoint holds exactly these tensors."""
    stored = manifest.tensors.layout().tensors
    missing, extra = sorted(state.keys() - stored.keys()), sorted(stored.keys() - state.keys())
    if missing or extra:
        raise CheckpointError(
            f"{folder.url}: has different tensors than this model and its optimizer: missing {missing[:3]}, unknown {extra[:3]}; "
            "resume with the model and optim.name that made it"
        )
    for name, tensor in state.items():
        if tuple(tensor.shape) != stored[name].shape:
            raise CheckpointError(
                f"{folder.url}: {name} has the shape {list(stored[name].shape)} there and {list(tensor.shape)} in this model; "
                "resume with the model that made it"
            )


@torch.no_grad()
def load_state(folder: StoragePath, manifest: CheckpointManifest, state: State, group: Group) -> list[str]:
    """Fill `state` in place, on all ranks together; returns the damage that any rank found, on every rank.

    The state is undefined if there is damage. Raises StorageError on every rank if files cannot be read.
    """
    damage, failure = None, None
    try:
        _read(folder, manifest, state, group)
    except CheckpointError as error:
        damage = str(error)
    except (RopewalkError, OSError) as error:  # the other ranks must learn of it
        failure = f"{folder.url}: the checkpoint cannot be read: {type(error).__name__}: {error}"
    if group.any(damage is not None or failure is not None):
        reports = group.all_gather_object([damage, failure])
        if failures := [each for _, each in reports if each is not None]:
            raise StorageError(failures[0])
        return list(dict.fromkeys(each for each, _ in reports if each is not None))  # ranks may have read the same block
    if REPLICATE in (group.mesh.mesh_dim_names or ()) and group.mesh[REPLICATE].size() > 1:
        for tensor in state.values():
            dist.broadcast(local_tensor(tensor), group=group.mesh[REPLICATE].get_group(), group_src=0)
    return []


def _read(folder: StoragePath, manifest: CheckpointManifest, state: State, group: Group) -> None:
    """Read this rank's pieces, unless another rank sends them."""
    mesh = mesh_of(group)
    axes, shape = list(mesh), tuple(mesh.values())
    if REPLICATE in mesh and coordinates(shape, group.rank)[axes.index(REPLICATE)] != 0:
        return
    layout = manifest.tensors.layout()
    plan = ReadPlan(layout)
    parts = [
        part
        for name in layout.tensors
        for part in plan.parts(name, pieces(tuple(state[name].shape), shape, placement_of(state[name], axes), group.rank))
    ]
    PartReader(folder, manifest, layout).read(parts, {name: local_tensor(tensor) for name, tensor in state.items()})
