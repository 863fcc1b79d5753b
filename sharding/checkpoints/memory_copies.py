"""Copies of the state in the memory of nodes: checkpoints like those in storage, in which each file is on two nodes.

A rank writes its file to the memory of its node and of the next one. Rank 0 commits a copy by its manifest, as a checkpoint.
"""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from shutil import disk_usage
from typing import Any

import torch
from torch.distributed import PrefixStore

from ropewalk.cluster.errors import CheckpointError, ConfigError, StorageError
from ropewalk.cluster.memory.peer import MemoryPeer
from ropewalk.cluster.memory.slots import SLOTS, CopyName, Slots, files_of
from ropewalk.cluster.process.scratch import machine
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.node_memory import NodeMemory
from ropewalk.cluster.storage import StoragePath
from ropewalk.cluster.text import format_bytes
from ropewalk.sharding.checkpoints.background_save import BackgroundSave
from ropewalk.sharding.checkpoints.file_layout import FileLayout, RankFile
from ropewalk.sharding.checkpoints.layout import MANIFEST_NAME
from ropewalk.sharding.checkpoints.manifest import (
    CheckpointManifest,
    FileRecord,
    dump_manifest,
    file_name,
    parse_manifest,
    rank_of,
)
from ropewalk.sharding.checkpoints.rank_file import is_damaged, write_rank_memory
from ropewalk.sharding.checkpoints.save_reports import SaveReports
from ropewalk.sharding.checkpoints.staging import Staging
from ropewalk.sharding.checkpoints.state import State
from ropewalk.sharding.group import Group, open_messages

log = logging.getLogger(__name__)


class MemoryFolder(StoragePath):
    """The files of a copy, as those of a checkpoint in a directory: some are on this node, others are read from their nodes."""

    def __init__(self, copy: str, memory: NodeMemory, nodes: dict[str, str]) -> None:
        """`nodes`: addresses of the nodes that have the files, by name."""
        super().__init__(memory.folder / copy)
        self.copy, self._memory, self._nodes = copy, memory, nodes
        self._local = files_of(memory.folder)
        self._peers: dict[str, MemoryPeer] = {}

    def close(self) -> None:
        """Close the connections to other nodes; another read opens them again."""
        while self._peers:
            self._peers.popitem()[1].close()

    def size(self, name: str) -> int:
        if (path := self._local.get(f"{self.copy}.{name}")) is not None:
            return path.stat().st_size
        return int(self._ask(name, MemoryPeer.size))

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        start, end = start or 0, self.size(name) if end is None else end
        if (path := self._local.get(f"{self.copy}.{name}")) is not None:
            with path.open("rb") as file:
                return os.pread(file.fileno(), end - start, start)
        return bytes(self._ask(name, MemoryPeer.get, start, end))

    def _ask(self, name: str, request: Callable[..., Any], *arguments: int) -> Any:
        """Ask the node that has a file. Raises CheckpointError, so that another copy or checkpoint is loaded."""
        try:
            address = self._nodes[name]
            if address not in self._peers:
                self._peers[address] = MemoryPeer(address, self._memory.key)
            return request(self._peers[address], f"{self.copy}.{name}", *arguments)
        except (OSError, KeyError) as error:
            raise CheckpointError(f"{name} cannot be read from the memory of another node: {error}") from None


@dataclass
class MemoryCopies:
    """The copies of a run in memory, used by one rank of a group. All ranks save, wait and find together."""

    memory: NodeMemory
    run: RunDir
    group: Group
    fence: Fence
    pending: BackgroundSave | None = field(default=None, init=False)
    complete: str = field(default="", init=False)  # the copy that was completed or loaded last
    last_step: int | None = field(default=None, init=False)  # of the copy that was started last
    _started: str = field(default="", init=False)
    failing: bool = field(default=False, init=False)  # True if the last copy failed
    _damaged: set[str] = field(default_factory=set, init=False)  # files that were found to be damaged
    _peer: MemoryPeer | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._messages = PrefixStore("memory", open_messages(self.group))
        self._files = Slots(self.memory.folder / f"rank-{self.memory.local_rank}")
        self._manifests = Slots(self.memory.folder / "manifest")
        self._staging = Staging(self.group.device)
        self._nodes = list(dict.fromkeys(self.group.all_gather_object(self.memory.address)))
        here = self._nodes.index(self.memory.address)
        self._next_node = self._nodes[(here + 1) % len(self._nodes)] if len(self._nodes) > 1 else None

    # --- saving

    def require_space(self, file: RankFile) -> None:
        """Raise ConfigError on every rank if the copies do not fit into the memory of a node. `file`: that of this rank."""
        folder, node_copies = self.memory.folder, 1 if self._next_node is None else 2
        used = sum(path.stat().st_size for path in folder.glob("*/*")) if self.memory.local_rank == 0 else 0
        needed = SLOTS * node_copies * (file.data_start + file.size) - used
        file_system = f"{machine()} {folder.stat().st_dev}"  # virtual nodes share it
        needs = self.group.gather_object((file_system, needed, disk_usage(folder).free), tuple[str, int, int])
        problem = None
        for each, free in {name: free for name, _, free in needs}.items():
            if (total := sum(size for name, size, _ in needs if name == each)) > free:
                problem = (
                    f"checkpoint.memory_every_steps: copies of the state need {format_bytes(total)} in {folder.parent} of a"
                    f" machine, which has {format_bytes(free)} left; enlarge it (in a container by --shm-size, on"
                    " Kubernetes by resources.memory_gib), use more nodes, or remove the key"
                )
        if problem := self.group.broadcast_object(problem):
            raise ConfigError(problem)

    def save(self, manifest: CheckpointManifest, layout: FileLayout, state: State, before_commit: Callable[[int], None]) -> None:
        """Start to copy the state and return. At most one copy is in progress."""
        self.wait()
        number = next(self.group.saves)
        copy = CopyName(self.fence.attempt, self.fence.group, number)
        self._started, self.last_step = str(copy), manifest.step
        self.pending = BackgroundSave(
            StoragePath(self.memory.folder / str(copy)),
            SaveReports(self._messages, number, self.group.rank, self.group.world_size, self.group.timeout),
            copy=self._prepare(copy, manifest, layout, state),
            write=partial(self._write, copy, manifest, layout),
            commit=partial(self._commit, copy, manifest, before_commit) if self.group.is_main else None,
        )

    def _prepare(
        self, copy: CopyName, manifest: CheckpointManifest, layout: FileLayout, state: State
    ) -> Callable[[], memoryview | None]:
        """Choose the memory of this rank's file, and return the function that copies the state to it."""
        file = layout.file(self.group.rank)
        if not file.size:
            return lambda: None
        try:
            name = f"{copy}.{file_name(manifest, self.group.rank)}"
            content = self._files.create(name, file.data_start + file.size, self.complete)
        except OSError as error:
            return partial(_fail, StorageError(f"{self.memory.folder}: no memory for a copy of the state: {error}"))
        data = torch.frombuffer(content, dtype=torch.uint8)[file.data_start :]
        self._staging.prepare(state, layout, self.group.rank, data)

        def fill() -> memoryview:
            self._staging.copy()
            return content

        return fill

    def _write(
        self, copy: CopyName, manifest: CheckpointManifest, layout: FileLayout, content: memoryview | None
    ) -> FileRecord | None:
        """Complete this rank's file, and send it to the next node."""
        if content is None:
            return None
        name = file_name(manifest, self.group.rank)
        record = write_rank_memory(content, name, layout.file(self.group.rank))
        self._files.finish(f"{copy}.{name}")
        self._send(f"from-{self.memory.local_rank}", f"{copy}.{name}", content)
        return record

    def _send(self, writer: str, name: str, content: memoryview | bytes) -> None:
        if self._next_node is None:
            return
        try:
            if self._peer is None:
                self._peer = MemoryPeer(self._next_node, self.memory.key)
            self._peer.put(writer, name, content, self.complete)
        except OSError as error:
            self.disconnect()
            raise StorageError(f"the memory of {self._next_node}: {error}") from error

    def disconnect(self) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.close()

    def _commit(
        self, copy: CopyName, manifest: CheckpointManifest, before_commit: Callable[[int], None], files: list[FileRecord]
    ) -> None:
        """Commit the copy. Called on rank 0, when the files of all ranks are on two nodes."""
        before_commit(manifest.step)
        self.fence.check()
        name, text = f"{copy}.{MANIFEST_NAME}", dump_manifest(manifest.model_copy(update={"files": files}))
        self._manifests.create(name, len(text), self.complete)[:] = text
        self._manifests.finish(name)
        self._send("from-manifest", name, text)

    def leaving_nodes(self, *, leaves: bool) -> set[str]:
        """Return the addresses of the nodes that leave the run, on every rank. `leaves`: this rank's node does."""
        nodes = self.group.all_gather_object(self.memory.address if leaves else None)
        return {node for node in nodes if node is not None}

    def outlives(self, leaving: set[str], least_nodes: int) -> bool:
        """Return True if a copy is whole without nodes that leave, and those that stay are enough for a group."""
        pairs = zip(self._nodes, [*self._nodes[1:], self._nodes[0]], strict=True)  # that have the same files
        return len(self._nodes) - len(leaving) >= least_nodes and not any({*pair} <= leaving for pair in pairs)

    def wait(self) -> bool:
        """Wait for the copy in progress, and return False if the last one failed.

        That is reported, since the earlier one and the checkpoints are left.
        """
        pending, self.pending = self.pending, None
        if pending is None:
            return not self.failing
        try:
            pending.wait()
        except StorageError as error:
            if self.group.is_main and not self.failing:  # the first in a row
                self.run.event("memory_copy_failed", problem=str(error), attempt=self.fence.attempt, group=self.fence.group)
            self.failing = True
        else:
            self.failing, self.complete = False, self._started
        return not self.failing

    def abandon(self) -> None:
        """End the copy in progress after the group broke."""
        pending, self.pending = self.pending, None
        if pending is not None:
            if self.group.is_main:
                pending.abandon(PrefixStore("memory", open_messages(self.group)))
            pending.join()
        self.disconnect()

    # --- checking

    def damaged(self, layout: FileLayout) -> int:
        """Return how many of the files in this rank's memory are damaged: its own, and those from another node, each once.

        Call on all ranks together: none of them may begin another copy meanwhile. Files of earlier groups are left out.
        """
        self.wait()
        mine = (f"rank-{self.memory.local_rank}", f"from-{self.memory.local_rank}")
        damaged = {
            str(path)
            for name, path in files_of(self.memory.folder).items()
            if path.parent.name in mine
            and CopyName.of(name).fence == (self.fence.attempt, self.fence.group)
            and is_damaged(path, layout.file(rank_of(name)))
        }
        new, self._damaged = damaged - self._damaged, damaged
        return len(new)

    def discard_after(self, step: int) -> None:
        """Make the copies of later steps incomplete, and those whose manifest is damaged."""
        self.last_step = None
        for name, path in files_of(self.memory.folder).items() if self.memory.local_rank == 0 else ():
            try:
                keep = not name.endswith(MANIFEST_NAME) or parse_manifest(path.read_bytes(), name).step <= step
            except CheckpointError:
                keep = False
            if not keep:
                path.unlink(missing_ok=True)

    # --- loading

    def find(self, least_step: int) -> list[tuple[MemoryFolder, CheckpointManifest]]:
        """Return the copies whose files are all on nodes of this group, from a step on, the newest first."""
        listing = _list_node(self.memory) if self.memory.local_rank == 0 else None
        listings = [each for each in self.group.gather_object(listing) if each is not None]
        copies = list(self._complete_copies(listings, least_step)) if self.group.is_main else []
        return [
            (MemoryFolder(copy, self.memory, nodes), parse_manifest(text.encode(), copy))
            for copy, text, nodes in self.group.broadcast_object(copies)
        ]

    def _complete_copies(self, listings: list[dict[str, Any]], least_step: int) -> Iterator[tuple[str, str, dict[str, str]]]:
        """Yield name, manifest and the nodes of the files of complete copies. Incomplete ones before them are reported.

        Behind a complete copy is one whose memory may be in use for the next.
        """
        complete = False
        manifests = {copy: text for listing in listings for copy, text in listing["manifests"].items()}
        nodes = {name: listing["node"] for listing in listings for name in listing["names"]}
        for copy in sorted(manifests, reverse=True):
            try:
                manifest = parse_manifest(manifests[copy].encode(), copy)
            except CheckpointError as error:
                log.warning("%s", error)
                continue
            if manifest.step < least_step:
                continue
            places = {file.path: nodes.get(f"{copy}.{file.path}") for file in manifest.files}
            missing = [path for path, node in places.items() if node is None]
            if missing and complete:
                continue
            if missing:
                problems = [f"{path} is in the memory of no node that is left" for path in missing[:3]]
                self.run.event("bad_checkpoint", step=manifest.step, path=f"memory: {copy}", problems=problems)
                continue
            complete = True
            yield copy, manifests[copy], {path: node for path, node in places.items() if node is not None}


def _fail(error: Exception) -> None:
    raise error


def _list_node(memory: NodeMemory) -> dict[str, Any]:
    """Return the files in the memory of this node, and the content of manifests."""
    files, end = files_of(memory.folder), f".{MANIFEST_NAME}"
    manifests = {name.removesuffix(end): path.read_text() for name, path in files.items() if name.endswith(end)}
    return {"node": memory.address, "names": list(files), "manifests": manifests}
