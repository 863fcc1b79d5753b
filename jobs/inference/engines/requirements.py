"""Check, without importing them, that packages of an engine are installed."""

from importlib.util import find_spec


def missing_packages(*names: str) -> str | None:
    """Return which of the packages are missing, with the remedy, or None if all are installed."""
    missing = [name for name in names if find_spec(name) is None]
    if not missing:
        return None
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; pip install 'ropewalk[serve]'"
