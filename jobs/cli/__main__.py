"""`python -m ropewalk.jobs.cli`, `python -m ropewalk`, and the installed command."""

import gc

gc.set_threshold(100_000)  # before the imports: objects live as long as the command; collections took a seventh of `ps`

from ropewalk.jobs.cli.main import main  # noqa: E402

__all__ = ["main"]

if __name__ == "__main__":
    main()
