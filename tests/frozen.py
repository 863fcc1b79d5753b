"""Leave behind what pytest has set, and have collections of garbage leave out all that is imported so far.

Imported last by the server that processes of tests are forked from, so that they begin like a program and are half as long.
"""

import faulthandler
import gc
import logging
import sys
import threading
import warnings

from tqdm import tqdm

from tests.workers import log_to_stderr

sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
sys.unraisablehook, threading.excepthook = sys.__unraisablehook__, threading.__excepthook__
for handler in [each for each in logging.root.handlers if type(each).__module__ == "_pytest.logging"]:
    logging.root.removeHandler(handler)  # with it a program's own configuration of logging would have no effect
log_to_stderr()
faulthandler.disable()  # its file is pytest's
filters = [each for each in warnings.filters if each[0] not in {"always", "error"}]
warnings.resetwarnings()
warnings.filters[:] = filters  # type: ignore[index]
warnings.simplefilter("ignore", ResourceWarning, append=True)
tqdm.set_lock(threading.RLock())  # else each rank makes a semaphore, and leaves it
gc.freeze()
