"""The server that processes of tests are forked from: one in a pytest process, whose last setting of imports is everybody's."""

import multiprocessing

from tests.warm import TRAINING

MIRRORS = ("jobs.mirror.history", "jobs.mirror.relay", "jobs.mirror.following", "tests.jobs.mirror.processes")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([*TRAINING, "tests.jobs.launch", *MIRRORS])
