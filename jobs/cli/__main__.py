"""`python -m ropewalk.jobs.cli`: the `ropewalk` command without the installed script."""

from ropewalk.jobs.cli.main import main

if __name__ == "__main__":
    main()
