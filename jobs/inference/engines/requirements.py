"""Whether packages are installed that an engine needs, without importing them."""

from importlib.util import find_spec


def missing_packages(*names: str) -> str | None:
    """Which of the packages are not installed, with the remedy; None if all are."""
    missing = [name for name in names if find_spec(name) is None]
    if not missing:
        return None
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; pip install 'ropewalk[serve]'"
