"""Elastic checkpoints: saved in the background, committed by a manifest, loaded at any world size."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from ropewalk.cluster.errors import CheckpointError, RopewalkError, StaleAttemptError, StorageError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.fence import Fence
from ropewalk.cluster.storage import StoragePath
from ropewalk.sharding.config import CheckpointConfig
from ropewalk.sharding.floats import null_floats
from ropewalk.sharding.group import Group
from ropewalk.sharding.layout import (
    MANIFEST_NAME,
    complete_steps,
    directory_of,
    folder_of,
    is_pinned,
    listed_steps,
    newest_steps,
    steps_in,
    write_step_list,
)
from ropewalk.sharding.manifest import (
    CheckpointManifest,
    FileRecord,
    config_diff,
    dump_manifest,
    hash_values,
    problems,
    read_manifest,
)
from ropewalk.sharding.state import State
from ropewalk.sharding.storage import CheckpointReader, CheckpointWriter, WrittenFile, parse_index

log = logging.getLogger(__name__)


def newest_complete(root: StoragePath, step: int | None = None) -> tuple[StoragePath, CheckpointManifest]:
    """Return the newest checkpoint (or that of `step`) whose files verify, in one process. Raises CheckpointError."""
    steps = sorted(listed_steps(root).union(steps_in(root))) if step is None else [step]
    for candidate in reversed(steps):
        folder = root.child(directory_of(candidate))
        try:
            manifest = read_manifest(folder)
            wrong = problems(folder, manifest.files)
        except CheckpointError as error:
            wrong = [str(error)]
        if not wrong:
            return folder, manifest
        log.warning("%s: %s", folder.url, "; ".join(wrong))
    wanted = "complete checkpoint" if step is None else f"complete checkpoint of step {step}"
    raise CheckpointError(f"{root.url}: no {wanted} (examined steps: {', '.join(map(str, steps)) or 'none'})")


class Checkpoints:
    """The checkpoints of a run, used by one rank. All ranks call every method but `failed` together."""

    def __init__(self, run: RunDir, group: Group, fence: Fence, config: CheckpointConfig, fingerprint: dict[str, Any]) -> None:
        self.run, self.group, self.fence, self.config = run, group, fence, config
        self.fingerprint, self.config_hash = fingerprint, hash_values(fingerprint)
        self.root = folder_of(run, config)
        self.last_step: int | None = None  # saved or loaded by this process
        # both run on rank 0 in the background thread: make earlier records durable; note a commit as (position, step)
        self.before_commit: Callable[[], None] = lambda: None
        self.after_commit: Callable[[int, int], None] = lambda position, step: None
        # the collectives of the background save must not mix with those of the training step
        self._background = dist.new_group(backend="gloo", timeout=group.timeout)
        on_gpu = group.device.type == "cuda"
        self._stager = DefaultStager(StagingOptions(on_gpu, False, False, on_gpu))
        self._pending: Future[Any] | None = None
        self._bad: set[int] = set()

    # --- saving

    def save(self, state: State, *, step: int, position: int, progress: dict[str, Any]) -> None:
        """Copy the state and start to write it; returns when training may continue. At most one save is in progress."""
        self.wait()
        manifest = CheckpointManifest(
            step=step,
            position=position,
            config_hash=self.config_hash,
            identity=self.fingerprint,
            world_size=self.group.world_size,
            attempt=self.fence.attempt,
            group=self.fence.group,
            files=[],
            index="",
            progress=progress,
        )
        folder = self.root.child(directory_of(step))
        # the prefix keeps a process of an earlier attempt from overwriting files that a newer one committed
        prefix = f"{self.fence.attempt:04d}-{self.fence.group:06d}"
        writer = CheckpointWriter(folder, prefix, self.fence.check, partial(self._commit, folder, manifest, prefix))
        pending = async_save(
            state, storage_writer=writer, planner=DefaultSavePlanner(), process_group=self._background, async_stager=self._stager
        )
        assert isinstance(pending, Future)
        self._pending = pending
        self.last_step = step

    def _commit(self, folder: StoragePath, manifest: CheckpointManifest, prefix: str, files: list[WrittenFile]) -> None:
        """Commit the checkpoint. Called on rank 0, when the files of all ranks are durable."""
        records = [FileRecord(path=f.path, size=f.size, checksum=f.checksum) for f in files]
        complete = manifest.model_copy(update={"files": records, "index": f"{prefix}-index.json"})
        self.before_commit()
        self.fence.check()
        write_step_list(self.root, {*listed_steps(self.root), manifest.step})
        folder.write(MANIFEST_NAME, dump_manifest(complete))
        self._bad.discard(manifest.step)
        self.run.event("checkpoint", step=manifest.step, attempt=manifest.attempt, path=directory_of(manifest.step))
        self.after_commit(manifest.position, manifest.step)
        self._prune(manifest.progress.get("best_step"))

    def _prune(self, best_step: int | None) -> None:
        """Delete all but the newest `keep` complete checkpoints, the best one, and those that another run has pinned.

        The manifest is removed first, so that no checkpoint looks complete with half of its files.
        """
        complete = [step for step in complete_steps(self.root) if step not in self._bad]
        removed = [step for step in complete[: -self.config.keep] if step != best_step and not is_pinned(self.root, step)]
        if removed:
            write_step_list(self.root, set(complete).difference(removed))
        for step in removed:
            self._remove(step)

    def _remove(self, step: int) -> None:
        self.fence.check()
        self.root.remove(f"{directory_of(step)}/{MANIFEST_NAME}")
        self.root.remove(directory_of(step))

    @property
    def failed(self) -> bool:
        """True if the background save has failed on this rank. Ranks must agree before they act on it."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def wait(self) -> None:
        """Wait until the save in progress is complete. Raises its error, the same one on every rank."""
        pending, self._pending = self._pending, None
        error = pending.exception() if pending is not None else None
        if error is not None:
            raise _plain(error, self.root) from error

    def close(self) -> None:
        """Wait for the save in progress, and free the memory of the copies."""
        self.wait()
        self._stager.close()

    # --- loading

    def find(self) -> tuple[StoragePath, CheckpointManifest] | None:
        """Return the newest checkpoint whose files verify, or None. The ranks share the reading; damaged ones are reported.

        Raises CheckpointError if it belongs to a different model.
        """
        self.group.barrier()
        for step in reversed(self.group.broadcast_object(newest_steps(self.root) if self.group.is_main else None)):
            folder = self.root.child(directory_of(step))
            manifest, wrong = self._examine(folder)
            if manifest is None:
                self._report_bad(step, folder, wrong)
                continue
            self._require_same_model(folder, manifest)
            return folder, manifest
        return None

    def find_elsewhere(self, root: StoragePath, step: int | None) -> tuple[StoragePath, CheckpointManifest]:
        """Return the checkpoint of another run (of `step`, else its newest) whose files verify. Raises CheckpointError."""
        self.group.barrier()
        steps: list[int] | None = None
        if self.group.is_main:
            steps = complete_steps(root) if step is None else [step]
        problem = "it has no checkpoint"
        for candidate in reversed(self.group.broadcast_object(steps) or []):
            folder = root.child(directory_of(candidate))
            manifest, wrong = self._examine(folder)
            if manifest is not None:
                self._require_same_model(folder, manifest)
                return folder, manifest
            problem = "; ".join(wrong)
        raise CheckpointError(f"{root.url}: {problem}; name another run or step in start_from")

    def _require_same_model(self, folder: StoragePath, manifest: CheckpointManifest) -> None:
        if manifest.config_hash != self.config_hash and manifest.identity != null_floats(self.fingerprint):
            raise CheckpointError(
                f"{folder.url}: belongs to a different model: {config_diff(manifest.identity, self.fingerprint)}; "
                "restore these keys, or start a new run"
            )

    def _examine(self, folder: StoragePath) -> tuple[CheckpointManifest | None, list[str]]:
        """Return the manifest if all files match it, else the problems."""
        read: CheckpointManifest | str | None = None
        if self.group.is_main:
            try:
                read = read_manifest(folder)
            except CheckpointError as error:
                read = str(error)
        manifest = self.group.broadcast_object(read, CheckpointManifest | str)
        if not isinstance(manifest, CheckpointManifest):
            return None, [str(manifest)]
        mine = manifest.files[self.group.rank :: self.group.world_size]
        wrong = [problem for rank in self.group.all_gather_object(problems(folder, mine)) for problem in rank]
        return (None if wrong else manifest), wrong

    def _report_bad(self, step: int, folder: StoragePath, wrong: list[str]) -> None:
        self._bad.add(step)
        if self.group.is_main:
            log.warning("%s is not used: %s; trying an older checkpoint", folder.url, "; ".join(wrong))
            self.run.event("bad_checkpoint", step=step, path=folder.url, problems=wrong)

    def load(self, folder: StoragePath, manifest: CheckpointManifest, state: State) -> None:
        """Fill the tensors of `state` in place. Raises CheckpointError unless the checkpoint holds exactly these tensors."""
        raw = self.group.broadcast_object(folder.read(manifest.index) if self.group.is_main else None, bytes)
        index = parse_index(raw, folder.url)
        missing, extra = sorted(state.keys() - index.keys()), sorted(index.keys() - state.keys())
        if missing or extra:
            raise CheckpointError(
                f"{folder.url}: has different tensors than this model: missing {missing[:3]}, unknown {extra[:3]}; "
                "resume with the model that made it"
            )
        self.group.barrier()  # the load's collectives must not start before all ranks are here
        try:
            load(state, storage_reader=CheckpointReader(folder, index), planner=DefaultLoadPlanner())
        except CheckpointException as error:
            raise _plain(error, folder) from error
        self.last_step = manifest.step

    def clean(self) -> None:
        """Remove incomplete saves of earlier attempts. Call before the first save."""
        if not self.group.is_main:
            return
        for step in steps_in(self.root):
            if not self.root.exists_afresh(f"{directory_of(step)}/{MANIFEST_NAME}"):
                log.info("%s/%s: removing an incomplete save", self.root.url, directory_of(step))
                self._remove(step)


def _plain(error: BaseException, folder: StoragePath) -> Exception:
    """Return the one error that explains the failure on any rank. An unknown storage error is worth another attempt."""
    causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    for kind in (StaleAttemptError, RopewalkError):
        for cause in causes:
            if isinstance(cause, kind):
                return type(cause)(str(cause))
    first = causes[0]
    if isinstance(first, RuntimeError):  # a collective failed: the engine decides by its type whether a peer was lost
        return first
    return StorageError(f"{folder.url}: the checkpoint was not saved or read: {type(first).__name__}: {first}")
