"""`python -m ropewalk`, where the folder of installed commands is not on the path."""

from ropewalk.jobs.cli.__main__ import main

main()
