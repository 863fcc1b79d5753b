"""`python -m jobs.cli`: the command `ropewalk` without an installed script."""

from jobs.cli.main import main

if __name__ == "__main__":
    main()
