"""Verdicts on what all ranks found: which part is corrupted, on which rank."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from torch.distributed.device_mesh import DeviceMesh

from ropewalk.jobs.training.loop.update.digests import PARTS
from ropewalk.sharding.group import REPLICATE

COPY = "copy in memory"


class RankState(NamedTuple):
    """A rank's answer to a check, as all ranks get it. Digests and `changed` are by part of the state."""

    digests: tuple[int, ...]
    changed: tuple[bool, ...]  # since the last update
    damaged_copies: int  # files of copies in the memory of its node

    @classmethod
    def of(cls, row: Sequence[int]) -> "RankState":
        size = len(PARTS)
        return cls(tuple(row[:size]), tuple(map(bool, row[size : 2 * size])), row[2 * size])


ROW = 2 * len(PARTS) + 1


class Finding(NamedTuple):
    """Corrupted parts of the state, and the rank to blame. `candidates`: ranks of which some are to blame, if that is unknown."""

    what: str
    rank: int | None
    candidates: tuple[int, ...] = ()


def replicas(mesh: DeviceMesh) -> list[list[int]]:
    """Return the ranks that hold equal state, group by group; none if the model has one copy."""
    names = mesh.mesh_dim_names or ()
    if REPLICATE not in names:
        return []
    ranks = mesh.mesh.movedim(names.index(REPLICATE), -1)
    groups: list[list[int]] = ranks.reshape(-1, ranks.shape[-1]).tolist()
    return groups


def judge(ranks: Sequence[RankState], groups: Sequence[Sequence[int]]) -> list[Finding]:
    """Return the corruption of the state. A rank whose state changed at rest is to blame, else one that differs from most.

    `groups`: see `replicas`.
    """
    blamed = {rank: state.changed for rank, state in enumerate(ranks) if any(state.changed)}
    findings = [Finding(_names(changed), rank) for rank, changed in blamed.items()]
    for group in groups:
        if any(rank in blamed for rank in group):
            continue
        (digests, number), *others = Counter(ranks[rank].digests for rank in group).most_common()
        wrong = [rank for rank in group if ranks[rank].digests != digests]
        if 2 * number > len(group):
            findings += [Finding(_names(_differs(ranks[rank].digests, digests)), rank) for rank in wrong]
        elif others:
            differs = _differs(digests, others[0][0])
            findings.append(Finding(_names(differs), None, tuple(group)))
    return findings


def damaged_copies(ranks: Sequence[RankState]) -> list[Finding]:
    """Return the damage to copies in memory, which the node of a rank is to blame for."""
    return [Finding(COPY, rank) for rank, state in enumerate(ranks) if state.damaged_copies]


def _differs(left: Sequence[int], right: Sequence[int]) -> list[bool]:
    return [mine != other for mine, other in zip(left, right, strict=True)]


def _names(parts: Sequence[bool]) -> str:
    return " and ".join(name for name, part in zip(PARTS, parts, strict=True) if part)
