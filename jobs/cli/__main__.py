"""`python -m ropewalk.jobs.cli`: the command `ropewalk` without an installed script."""

from ropewalk.jobs.cli.main import main

if __name__ == "__main__":
    main()
