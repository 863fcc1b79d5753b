"""What is to be served, as the registry asks for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the registry asks for."""

    stable: str | None  # the version that the served alias points to
    canary: str | None = None  # the version that is to have a share, for as long as it is named
    barred: Mapping[str, str] = field(default_factory=dict)  # versions that may not be loaded, each with the reason
