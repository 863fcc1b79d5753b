"""Release of what torch's caches keep of a process group that is destroyed: its sockets would stay open."""

from torch.distributed.tensor._collective_utils import MeshTopoInfo
from torch.distributed.tensor._redistribute import clear_redistribute_planner_cache
from torch.distributed.tensor.debug import _clear_sharding_prop_cache


def forget_meshes() -> None:
    """Empty DTensor's caches: they hold meshes, and with them process groups.

    A tensor of a new group with a mesh of the same shape would get the old one. torch 2.13 has no public function for this.
    """
    _clear_sharding_prop_cache()  # type: ignore[no-untyped-call]
    clear_redistribute_planner_cache()
    MeshTopoInfo.build_from_mesh.cache_clear()
