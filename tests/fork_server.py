"""The server that processes of tests are forked from: one in a pytest process, whose last setting of imports is everybody's."""

import multiprocessing

from tests.warm import TRAINING

MIRRORS = ("ropewalk.jobs.runs.mirror.relay", "ropewalk.jobs.runs.mirror.following", "tests.jobs.runs.mirror.processes")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([*TRAINING, "tests.jobs.launch", *MIRRORS])
