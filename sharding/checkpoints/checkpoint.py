"""Elastic checkpoints: saved in the background, committed by a manifest, loaded at any world size."""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from ropewalk.cluster.errors import CheckpointError, DamagedCheckpointError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.run.node_memory import NodeMemory
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.checkpoints.background_save import BackgroundSave
from ropewalk.sharding.checkpoints.file_layout import FileLayout, StoredTensor
from ropewalk.sharding.checkpoints.floats import null_floats
from ropewalk.sharding.checkpoints.layout import (
    MANIFEST_NAME,
    complete_steps,
    directory_of,
    folder_of,
    newest_steps,
    steps_in,
)
from ropewalk.sharding.checkpoints.load_state import load_state, mesh_of, require_same_tensors
from ropewalk.sharding.checkpoints.manifest import (
    CheckpointManifest,
    FileRecord,
    TensorTable,
    config_diff,
    dump_manifest,
    file_name,
    hash_values,
    read_manifest,
)
from ropewalk.sharding.checkpoints.memory_copies import MemoryCopies, MemoryFolder
from ropewalk.sharding.checkpoints.rank_file import write_rank_file
from ropewalk.sharding.checkpoints.read_plan import problems
from ropewalk.sharding.checkpoints.retention import Retention
from ropewalk.sharding.checkpoints.save_reports import SaveReports
from ropewalk.sharding.checkpoints.staging import Staging
from ropewalk.sharding.checkpoints.state import State
from ropewalk.sharding.config import CheckpointConfig
from ropewalk.sharding.group import Group, open_messages

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run, used by one rank. All ranks save, wait, find and load together."""

    def __init__(
        self,
        run: RunDir,
        group: Group,
        fence: Fence,
        config: CheckpointConfig,
        fingerprint: dict[str, Any],
        *,
        memory: NodeMemory | None = None,
    ) -> None:
        """`memory`: that of the node, for copies beside the checkpoints."""
        self.run, self.group, self.fence, self.config = run, group, fence, config
        self.fingerprint, self.config_hash = fingerprint, hash_values(fingerprint)
        self.root = folder_of(run, config)
        self.last_step: int | None = None  # of the checkpoint that was saved or loaded last by this process
        self.memory = MemoryCopies(memory, run, group, fence) if memory is not None else None
        # both run on rank 0 in the background thread: make reports up to a step durable; note a commit as (position, step)
        self.before_commit: Callable[[int], None] = lambda step: None
        self.after_commit: Callable[[int, int], None] = lambda position, step: None
        self._messages = open_messages(group)
        self._staging = Staging(group.device)
        self._pending: BackgroundSave | None = None
        self._described: tuple[State, TensorTable, FileLayout] | None = None
        self.retention = Retention(self.root, fence, config.keep)
        self._damaged: set[str] = set()  # directories of checkpoints that could not be loaded

    # --- saving

    def save(self, state: State, *, step: int, position: int, progress: dict[str, Any]) -> None:
        """Start to copy the state and to write it, and return. At most one save is in progress.

        The state must not change until `wait_for_copy` returns.
        """
        self._finish_save()
        manifest, layout = self._manifest(state, step, position, progress)
        folder = self.root.child(directory_of(step))
        self._staging.prepare(state, layout, self.group.rank)
        self._pending = BackgroundSave(
            folder,
            SaveReports(self._messages, next(self.group.saves), self.group.rank, self.group.world_size, self.group.timeout),
            copy=self._staging.copy,
            write=partial(self._write, folder, manifest, layout),
            commit=partial(self._commit, folder, manifest) if self.group.is_main else None,
        )
        self.last_step = step

    def copy_to_memory(self, state: State, *, step: int, position: int, progress: dict[str, Any]) -> None:
        """Start to copy the state to the memory of nodes; otherwise like `save`. A copy that fails is an event, no error."""
        assert self.memory is not None
        self.memory.save(*self._manifest(state, step, position, progress), state, self.before_commit)

    def require_memory(self, state: State) -> None:
        """Raise ConfigError if the memory of a node is too small for its copies of a state."""
        if self.memory is not None:
            self.memory.require_space(self._describe(state)[1].file(self.group.rank))

    def _manifest(
        self, state: State, step: int, position: int, progress: dict[str, Any]
    ) -> tuple[CheckpointManifest, FileLayout]:
        """Return the manifest of a state, without files, and the layout of its files."""
        tensors, layout = self._describe(state)
        manifest = CheckpointManifest(
            step=step,
            position=position,
            config_hash=self.config_hash,
            identity=self.fingerprint,
            world_size=self.group.world_size,
            attempt=self.fence.attempt,
            group=self.fence.group,
            time=time.time(),
            files=[],
            tensors=tensors,
            progress=progress,
        )
        return manifest, layout

    def _describe(self, state: State) -> tuple[TensorTable, FileLayout]:
        """Return shapes and placements of a state; they are computed once, since a run saves the same tensors each time."""
        if self._described is None or self._described[0] is not state:
            mesh = mesh_of(self.group)
            tensors = {name: StoredTensor.of(tensor, list(mesh)) for name, tensor in state.items()}
            self._described = state, TensorTable.of(tensors, mesh), FileLayout(tensors, tuple(mesh.values()))
        return self._described[1:]

    def _write(self, folder: StoragePath, manifest: CheckpointManifest, layout: FileLayout, data: Any) -> FileRecord | None:
        """Write this rank's file, if it saves anything."""
        self.fence.check()
        rank = self.group.rank
        return write_rank_file(folder, file_name(manifest, rank), layout.file(rank), data) if len(data) else None

    @property
    def copying(self) -> bool:
        """True while the state is being copied, and must not change."""
        return any(pending.copying for pending in self._all_pending)

    @property
    def _all_pending(self) -> list[BackgroundSave]:
        in_memory = self.memory.pending if self.memory is not None else None
        return [pending for pending in (self._pending, in_memory) if pending is not None]

    def wait_for_copy(self) -> None:
        """Wait until the state that is being saved is copied. Call before the state changes."""
        for pending in self._all_pending:
            pending.wait_for_copy()

    def _commit(self, folder: StoragePath, manifest: CheckpointManifest, files: list[FileRecord]) -> None:
        """Commit the checkpoint. Called on rank 0, when the files of all ranks are durable."""
        complete = manifest.model_copy(update={"files": files})
        self.before_commit(manifest.step)
        self.fence.check()
        with self.retention.steps(added=manifest.step):
            folder.write(MANIFEST_NAME, dump_manifest(complete))
        self._damaged.discard(folder.url)
        self.run.event("checkpoint", step=manifest.step, attempt=manifest.attempt, path=directory_of(manifest.step))
        self.after_commit(manifest.position, manifest.step)
        self.retention.start(manifest.progress.get("best_step"))

    @property
    def failed(self) -> bool:
        """True if the background save has failed. Ranks must agree before they act on it."""
        return self._pending is not None and self._pending.failed

    def _finish_save(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.wait()

    def wait(self) -> None:
        """Wait until the save in progress is complete and old ones are removed. Raises its error, the same on every rank."""
        self._finish_save()
        self.retention.wait()
        if self.memory is not None:
            self.memory.wait()

    def abandon(self) -> None:
        """End the save in progress after the group broke: it is committed if all ranks have written their files, else not."""
        if self.memory is not None:
            self.memory.abandon()
        pending, self._pending = self._pending, None
        if pending is not None:
            if self.group.is_main:
                pending.abandon(open_messages(self.group))
            pending.join()

    def close(self) -> None:
        """Wait for the save in progress, and free the memory of the copy."""
        self.wait()
        self._staging.free()
        if self.memory is not None:
            self.memory.disconnect()

    # --- loading

    def find(self, *, in_memory: bool = True) -> tuple[StoragePath, CheckpointManifest] | None:
        """Return the newest checkpoint whose files are all there, or None; the ranks share the work. Bad ones are reported.

        A copy in memory is one too, unless it is older. Tensors are verified when they are loaded. Raises CheckpointError if it
        belongs to a different model.
        """
        self.group.barrier()
        steps = newest_steps(self.root) if self.group.is_main else []
        if in_memory and self.memory is not None:
            newest = max(complete_steps(self.root), default=0) if self.group.is_main else 0
            for copy in self.memory.find(newest):
                if copy[0].url not in self._damaged:
                    self._require_same_model(*copy)
                    return copy
        return self._newest(self.root, steps)[0]

    def find_elsewhere(self, root: StoragePath, step: int | None) -> tuple[StoragePath, CheckpointManifest]:
        """Return the checkpoint of another run (of `step`, else its newest) whose files are there. Raises CheckpointError."""
        self.group.barrier()
        steps = [step] if step is not None else complete_steps(root) if self.group.is_main else []
        checkpoint, problem = self._newest(root, steps)
        if checkpoint is None:
            raise CheckpointError(f"{root.url}: {problem}; name another run or step in start_from")
        return checkpoint

    def _newest(self, root: StoragePath, steps: list[int]) -> tuple[tuple[StoragePath, CheckpointManifest] | None, str]:
        """Return the newest usable checkpoint of rank 0's steps, if there is one, and the last problem."""
        problem = "it has no checkpoint"
        for step in reversed(self.group.broadcast_object(steps)):
            folder = root.child(directory_of(step))
            manifest, wrong = self._examine(folder)
            if manifest is not None:
                self._require_same_model(folder, manifest)
                return (folder, manifest), problem
            self._report_bad(root, step, wrong)
            problem = "; ".join(wrong)
        return None, problem

    def _require_same_model(self, folder: StoragePath, manifest: CheckpointManifest) -> None:
        if manifest.config_hash != self.config_hash and manifest.identity != null_floats(self.fingerprint):
            raise CheckpointError(
                f"{folder.url}: belongs to a different model: {config_diff(manifest.identity, self.fingerprint)}; "
                "restore these keys, or start a new run"
            )

    def _examine(self, folder: StoragePath) -> tuple[CheckpointManifest | None, list[str]]:
        """Return the manifest if all files are there and their tables of checksums match it, else the problems."""
        read: CheckpointManifest | str | None = None
        if self.group.is_main:
            try:
                read = read_manifest(folder) if folder.url not in self._damaged else "damaged, as was found while it was loaded"
            except CheckpointError as error:
                read = str(error)
        manifest = self.group.broadcast_object(read, CheckpointManifest | str)
        if not isinstance(manifest, CheckpointManifest):
            return None, [str(manifest)]
        mine = slice(self.group.rank, None, self.group.world_size)
        wrong = [problem for rank in self.group.all_gather_object(problems(folder, manifest, mine)) for problem in rank]
        return (None if wrong else manifest), wrong

    def _report_bad(self, root: StoragePath, step: int, wrong: list[str]) -> None:
        """Report a bad checkpoint; one of this run does not count among those that are kept."""
        url = root.child(directory_of(step)).url
        if root.url == self.root.url:
            self.retention.bad.add(step)
        if self.group.is_main:
            log.warning("%s is not used: %s; trying an older checkpoint", url, "; ".join(wrong))
            self.run.event("bad_checkpoint", step=step, path=url, problems=wrong)

    def load(
        self, folder: StoragePath, manifest: CheckpointManifest, state: State, *, or_older: bool = True
    ) -> CheckpointManifest:
        """Fill the tensors of `state` in place, and return the manifest of the checkpoint that was loaded.

        If a block is damaged, and `or_older`, that is the next older one that is not. Raises DamagedCheckpointError if there is
        none, CheckpointError unless the checkpoint holds exactly these tensors.
        """
        root = StoragePath(folder.url.rpartition("/")[0], folder.patience_seconds)
        while True:
            require_same_tensors(folder, manifest, state)
            wrong = load_state(folder, manifest, state, self.group)
            if isinstance(folder, MemoryFolder):
                folder.close()
            if not wrong:
                self.last_step = manifest.step
                if self.memory is not None:
                    self.memory.last_step = None
                if self.memory is not None and isinstance(folder, MemoryFolder):
                    self.last_step, self.memory.complete = None, folder.copy
                return manifest
            self._damaged.add(folder.url)
            self._report_bad(root, manifest.step, wrong)
            if isinstance(folder, MemoryFolder):
                older = self.find()
            else:
                steps = complete_steps(root) if self.group.is_main and or_older else []
                older, _ = self._newest(root, [step for step in steps if step < manifest.step])
            if older is None:
                raise DamagedCheckpointError(f"{folder.url}: damaged: {'; '.join(wrong)}; no older checkpoint can be loaded")
            folder, manifest = older

    @property
    def tier(self) -> Literal["memory", "storage"]:
        """The origin of the state that was loaded last."""
        return "memory" if self.last_step is None else "storage"

    def discard_after(self, step: int) -> None:
        """Remove checkpoints and copies in memory of later steps, whose state may be corrupted. Call `wait` before."""
        if self.memory is not None:
            self.memory.discard_after(step)
        if self.group.is_main:
            self.retention.discard_after(step)
        self.group.barrier()  # before any rank looks for what is left

    def damaged_copies(self) -> int:
        """Return how many files of copies in this rank's memory were damaged since the last call."""
        return self.memory.damaged(self._described[2]) if self.memory is not None and self._described is not None else 0

    def clean(self) -> None:
        """Remove incomplete saves of earlier attempts. Call before the first save."""
        for step in steps_in(self.root) if self.group.is_main else []:
            if not self.root.exists_afresh(f"{directory_of(step)}/{MANIFEST_NAME}"):
                log.info("%s/%s: removing an incomplete save", self.root.url, directory_of(step))
                self.retention.remove(step)
        self.group.barrier()  # no rank may begin to save meanwhile
