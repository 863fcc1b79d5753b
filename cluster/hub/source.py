"""Listing of the files of a hub repository or a directory of an object store, with functions that read them by ranges."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
from huggingface_hub import constants, errors

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.hub import progress
from ropewalk.cluster.hub.names import HubName

constants.HF_HUB_DISABLE_TELEMETRY = True  # else the first request waits for another one

HUB_SECONDS = 5.0  # for the one request at submission
RATE_LIMIT_SECONDS = 300.0  # longest wait that a hub may ask for
READ_BYTES = 1 << 16  # at most this much is in memory, and lost by a kill or a broken connection


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a source. `read` yields its bytes from an offset."""

    name: str
    size: int
    digest: str  # sha256-HEX or git-HEX of its content, or etag-HEX of its identity in its store
    read: Callable[[int], Iterator[bytes]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files of a repository or directory at one version."""

    label: str  # as users name it, for messages
    name: str  # without version; path of its folder in the store
    version: str  # commit on the hub, else a hash of its listing
    files: tuple[RemoteFile, ...]


class HubUnreachableError(Exception):
    """The hub did not answer in time, or requests to it are switched off; the message says why."""


class RateLimitedError(Exception):
    """The hub asks to wait."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"rate limit; it asks to wait {seconds:.0f} s")
        self.seconds = seconds


def endpoint() -> str:
    """Return the address of the hub: $HF_ENDPOINT, else huggingface.co."""
    return str(constants.ENDPOINT)


def list_repository(name: HubName, where: str) -> Source:
    """List a repository by one request of at most 5 s, and after a rate limit by another one.

    `where` begins the message of a ConfigError: the key and the value. Raises HubUnreachableError.
    """
    deadline = time.monotonic() + RATE_LIMIT_SECONDS
    _ = huggingface_hub.HfApi  # imported before its time is measured
    while True:
        try:
            info = _within(HUB_SECONDS, partial(_repository_info, name, where))
            break
        except RateLimitedError as limit:
            if time.monotonic() + limit.seconds > deadline:
                raise ConfigError(f"{where}: {endpoint()}: {limit}; set HF_TOKEN, or try again later") from None
            progress.notify(f"{name}: {limit}")
            time.sleep(limit.seconds)
    files = [_hub_file(name, info.sha, sibling) for sibling in info.siblings or ()]
    return Source(label=str(name), name=name.repository, version=info.sha, files=tuple(files))


def reach_hub() -> None:
    """Raise HubUnreachableError unless the hub answers a request, whatever it says."""
    try:
        _within(HUB_SECONDS, partial(huggingface_hub.get_session().head, endpoint(), timeout=2 * HUB_SECONDS))
    except HubUnreachableError:
        raise
    except errors.OfflineModeIsEnabled:
        raise HubUnreachableError("HF_HUB_OFFLINE is set") from None
    except Exception as error:  # connection errors of the HTTP library, whichever huggingface_hub uses
        raise HubUnreachableError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None


def _within(seconds: float, action: Callable[[], Any]) -> Any:
    """Return the result of `action`. Raises HubUnreachableError after `seconds`: looking up a host name has no time limit."""
    results: list[Any] = []

    def call() -> None:
        try:
            results.append(action())
        except Exception as error:  # raised again below
            results.append(error)

    thread = threading.Thread(target=call, name="hub", daemon=True)
    thread.start()
    thread.join(seconds)
    if not results:
        raise HubUnreachableError(f"no answer within {seconds:.0f} s")
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


def _repository_info(name: HubName, where: str) -> Any:
    api = huggingface_hub.HfApi()
    ask = api.dataset_info if name.is_dataset else api.model_info
    kind, remedy = "data set" if name.is_dataset else "model", "check the name or path, and set HF_TOKEN if it is private"
    try:
        return ask(name.repository, revision=name.revision, files_metadata=True, timeout=2 * HUB_SECONDS)  # _within ends first
    except errors.GatedRepoError:
        raise ConfigError(
            f"{where}: the {kind} is gated; accept its terms on {endpoint()}/{'datasets/' * name.is_dataset}{name.repository},"
            " and set HF_TOKEN to a token of yours"
        ) from None
    except errors.RevisionNotFoundError:
        raise ConfigError(f"{where}: the {kind} has no revision {name.revision!r}; name a branch, a tag or a commit") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise ConfigError(f"{where}: not here, and the hub ({endpoint()}) has no such {kind}; {remedy}") from None
    except errors.OfflineModeIsEnabled:
        raise HubUnreachableError("HF_HUB_OFFLINE is set") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status == 429:
            raise RateLimitedError(retry_after(error.response)) from None
        if status in {401, 403, 404}:  # a mirror that sends no error codes
            revision = f", or it has no revision {name.revision!r}" if name.revision else ""
            raise ConfigError(f"{where}: not here, and the hub ({endpoint()}) has no such {kind}{revision}; {remedy}") from None
        raise HubUnreachableError(f"HTTP {status}") from None
    except Exception as error:  # connection errors of the HTTP library, whichever huggingface_hub uses
        raise HubUnreachableError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None


def retry_after(response: Any) -> float:
    """Return the seconds that a response asks to wait, 5 if it does not say."""
    value = str(response.headers.get("Retry-After", ""))
    return float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else 5.0


def _hub_file(name: HubName, commit: str, sibling: Any) -> RemoteFile:
    digest = f"sha256-{sibling.lfs.sha256}" if sibling.lfs else f"git-{sibling.blob_id}"
    read = partial(_read_hub, name, commit, sibling.rfilename, digest.partition("-")[2])
    return RemoteFile(name=sibling.rfilename, size=int(sibling.size or 0), digest=digest, read=read)


def _read_hub(name: HubName, commit: str, file: str, etag: str, offset: int) -> Iterator[bytes]:
    """Read a file of the hub, from the Hugging Face cache of this machine if it has it."""
    with suppress(FileNotFoundError):
        yield from read_local(cache_folder(name) / "blobs" / etag, offset)
        return
    url = huggingface_hub.hf_hub_url(
        name.repository, file, revision=commit, repo_type="dataset" if name.is_dataset else "model", endpoint=endpoint()
    )
    headers = {**huggingface_hub.utils.build_hf_headers(), "Accept-Encoding": "identity"}  # type: ignore[attr-defined]
    if offset:
        headers["Range"] = f"bytes={offset}-"
    with huggingface_hub.get_session().stream("GET", url, headers=headers, timeout=10.0) as response:
        if response.status_code == 429:
            raise RateLimitedError(retry_after(response))
        if response.status_code in {401, 403, 404}:
            raise ConfigError(
                f"{name}: {file}: {endpoint()} refuses it (HTTP {response.status_code}); accept the terms on its page if it is"
                " gated, and set HF_TOKEN to a token of yours"
            )
        response.raise_for_status()
        skip = offset if response.status_code == 200 else 0  # the server does not know ranges
        for chunk in response.iter_bytes(READ_BYTES):
            if len(chunk) > skip:
                yield chunk[skip:]
            skip = max(0, skip - len(chunk))


def read_local(path: Path, offset: int) -> Iterator[bytes]:
    """Yield the bytes of a file of this machine from an offset."""
    with path.open("rb") as stream:
        stream.seek(offset)
        while chunk := stream.read(READ_BYTES):
            yield chunk


def cache_folder(name: HubName) -> Path:
    """Return the folder of a repository in the Hugging Face cache of this machine."""
    kind = "datasets" if name.is_dataset else "models"
    return Path(constants.HF_HUB_CACHE) / f"{kind}--{name.repository.replace('/', '--')}"


def list_cached(name: HubName) -> Source | None:
    """List a revision that the Hugging Face cache of this machine has, by its links to content; None if it has none."""
    folder, revision = cache_folder(name), name.revision or "main"
    with suppress(OSError):
        reference = folder / "refs" / revision
        commit = reference.read_text().strip() if reference.is_file() else revision
        files = []
        for path in sorted((folder / "snapshots" / commit).rglob("*")):
            if path.is_file():
                etag = path.readlink().name
                digest = f"{'sha256' if len(etag) == 64 else 'git'}-{etag}"
                file = str(path.relative_to(folder / "snapshots" / commit))
                read = partial(read_local, path)
                files.append(RemoteFile(name=file, size=path.stat().st_size, digest=digest, read=read))
        return Source(label=str(name), name=name.repository, version=commit, files=tuple(files)) if files else None
    return None


def list_url(url: str, where: str) -> Source:
    """List a directory of any fsspec file system, such as s3://BUCKET/MODEL. Raises ConfigError."""
    try:
        fs, root = fsspec.core.url_to_fs(url)
        entries = fs.find(root, detail=True)
    except Exception as error:  # each store has its own exceptions
        raise ConfigError(f"{where}: cannot be read: {type(error).__name__}: {error}; check the URL and your access") from None
    if not entries:
        raise ConfigError(f"{where}: there is no such directory; check the URL")
    files = []
    for path, entry in sorted(entries.items()):
        identity = (
            f"{url} {path} {entry['size']} {entry.get('ETag') or entry.get('etag') or entry.get('mtime') or entry.get('created')}"
        )
        files.append(
            RemoteFile(
                name=str(path).removeprefix(str(root).rstrip("/")).lstrip("/"),
                size=int(entry["size"]),
                digest=f"etag-{sha256(identity.encode()).hexdigest()}",
                read=partial(_read_fsspec, fs, path),
            )
        )
    version = sha256("".join(file.digest for file in files).encode()).hexdigest()[:40]
    return Source(
        label=url, name=f"{url.partition(':')[0]}/{url.rstrip('/').rpartition('/')[2]}", version=version, files=tuple(files)
    )


def _read_fsspec(fs: Any, path: str, offset: int) -> Iterator[bytes]:
    with fs.open(path, "rb", block_size=8 * READ_BYTES, cache_type="readahead") as stream:
        stream.seek(offset)
        while chunk := stream.read(READ_BYTES):
            yield chunk
