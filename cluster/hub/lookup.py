"""Lookup of a name on the hub or of a URL: the version that it means now, and the files of it that a key needs."""

import math
import time
from dataclasses import dataclass, replace
from functools import partial

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.hub import progress
from ropewalk.cluster.hub.choose import FOLDERS, Need, choose
from ropewalk.cluster.hub.names import SCHEME, HubName, parse_url
from ropewalk.cluster.hub.source import (
    HubUnreachableError,
    RemoteFile,
    Source,
    endpoint,
    list_cached,
    list_repository,
    list_url,
    read_local,
)
from ropewalk.cluster.hub.store import Store, version_folder
from ropewalk.cluster.run.names import STORE_VARIABLE

PAUSE_SECONDS = 30.0  # before a hub that did not answer is asked again
_unreachable: dict[str, tuple[float, str]] = {}  # by address: when the hub did not answer, and why


@dataclass(frozen=True, kw_only=True)
class Version:
    """A pinned version of a repository or URL, with the files to fetch."""

    location: str  # hf://...@COMMIT, or the URL
    need: Need
    source: Source
    files: tuple[RemoteFile, ...]
    folder: str  # in the store
    inner: str  # file, folder or glob in it that the key means; empty: all

    @property
    def path(self) -> str:
        """Path in the store that replaces the name in the configuration."""
        return f"{self.folder}/{self.inner}" if self.inner else self.folder

    def fetch(self, store: Store) -> None:
        """Bring the files into a store."""
        store.fetch(self.folder, self.source, self.files)


def look_up(location: HubName | str, need: Need, where: str, store: Store | None = None) -> Version:
    """Return the version that a name or URL means now. Raises ConfigError, which `where` begins: the key and the value.

    If the hub does not answer, this is the version that `store` or the Hugging Face cache of this machine has.
    """
    if isinstance(location, str) and location.startswith(SCHEME):
        name = parse_url(location)
        if name is None:
            raise ConfigError(f"{where}: must be hf://ORG/NAME[@REVISION] or hf://datasets/ORG/NAME[@REVISION]/PATH")
        location = name
    if isinstance(location, str):
        return _version(location, need, list_url(location, where), "", where)
    source = _list(location, need, where, store)
    pinned = f"{SCHEME}{'datasets/' * location.is_dataset}{replace(location, revision=source.version)}"
    return _version(pinned, need, source, location.path, where)


def _version(location: str, need: Need, source: Source, path: str, where: str) -> Version:
    files = choose(source.files, need, path, where)
    folder = version_folder(FOLDERS[need], source, path)
    return Version(
        location=location,
        need=need,
        source=source,
        files=tuple(files),
        folder=folder,
        inner=files[0].name if need == "file" else path if need in {"data", "tokens"} else "",
    )


def _list(name: HubName, need: Need, where: str, store: Store | None) -> Source:
    reference = f"{'datasets' if name.is_dataset else 'models'}/{name.repository}"
    try:
        source = _ask(name, where)
    except HubUnreachableError as error:
        commit = store.commit_of(reference, name.revision) or name.revision if store else None
        present = (_stored(name, need, commit, store) if store and commit else None) or list_cached(name)
        if present is None:
            raise ConfigError(
                f"{where}: not here, and the hub ({endpoint()}) cannot be reached ({error}); run `ropewalk fetch` where there is"
                f" a network, with ${STORE_VARIABLE} on a file system that this machine sees, set HF_ENDPOINT to a mirror, or"
                " name a directory"
            ) from None
        progress.notify(f"{name}: the hub cannot be reached ({error}); using version {present.version[:12]}, which is here")
        return present
    if store is not None:
        store.remember_commit(reference, name.revision, source.version)
    return source


def _ask(name: HubName, where: str) -> Source:
    """List a repository. A hub that has just not answered is not asked again: a job names several repositories."""
    time_asked, reason = _unreachable.get(endpoint(), (-math.inf, ""))
    if time.monotonic() - time_asked < PAUSE_SECONDS:
        raise HubUnreachableError(reason)
    try:
        return list_repository(name, where)
    except HubUnreachableError as error:
        _unreachable[endpoint()] = (time.monotonic(), str(error))
        raise


def _stored(name: HubName, need: Need, commit: str, store: Store) -> Source | None:
    """Return a version that the store has for a key of this kind, or None."""
    source = Source(label=str(name), name=name.repository, version=commit, files=())
    folder = store.root / version_folder(FOLDERS[need], source, name.path)
    files = [
        RemoteFile(name=str(path.relative_to(folder)), size=path.stat().st_size, digest="", read=partial(read_local, path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return replace(source, files=tuple(files)) if files else None
