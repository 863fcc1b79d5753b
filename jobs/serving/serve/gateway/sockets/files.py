"""How many files a process may have open: a socket of every client and of every engine counts."""

import resource


def raise_open_files(wanted: int) -> int:
    """Raise the limit to what is wanted, as far as the system lets us; the limit that holds then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted or soft == resource.RLIM_INFINITY:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):
            return soft
        return most
    return soft
