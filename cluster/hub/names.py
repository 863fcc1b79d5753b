"""Names of repositories on the Hugging Face hub: ORG/NAME[@REVISION], and hf:// with a path in the repository."""

import re
from dataclasses import dataclass
from pathlib import Path

SCHEME = "hf://"
_REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_REVISION = r"refs/(?:pr|convert)/[\w.-]+|[^/@]+"
_PLAIN = re.compile(rf"(?P<repository>{_REPOSITORY})(?:@(?P<revision>{_REVISION}))?")
_URL = re.compile(rf"(?P<dataset>datasets/)?(?P<repository>{_REPOSITORY})(?:@(?P<revision>{_REVISION}))?(?:/(?P<path>.+))?")


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A repository at a revision, and a file, folder or glob in it."""

    repository: str
    is_dataset: bool
    revision: str | None = None  # None: the newest
    path: str = ""  # empty: all of it

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{revision}{'/' if self.path else ''}{self.path}"


def parse_url(url: str) -> HubName | None:
    """Parse hf://[datasets/]ORG/NAME[@REVISION][/PATH], or return None for another text."""
    match = _URL.fullmatch(url.removeprefix(SCHEME).rstrip("/")) if url.startswith(SCHEME) else None
    if match is None:
        return None
    return HubName(
        repository=match["repository"],
        is_dataset=match["dataset"] is not None,
        revision=match["revision"],
        path=match["path"] or "",
    )


def parse_plain(value: str, *, is_dataset: bool) -> HubName | None:
    """Parse ORG/NAME[@REVISION], also after it was made absolute from the current directory; None for another text."""
    path = Path(value)
    if path.is_absolute():
        if not path.is_relative_to(Path.cwd()):
            return None
        value = str(path.relative_to(Path.cwd()))
    match = _PLAIN.fullmatch(value)
    return HubName(repository=match["repository"], is_dataset=is_dataset, revision=match["revision"]) if match else None
