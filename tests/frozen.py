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

sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
for logger in logging.root, *logging.root.manager.loggerDict.values():
    for handler in getattr(logger, "handlers", ()):
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)  # its file was pytest's and is closed; the number may be that of the server's pipe now
faulthandler.disable()  # its file is pytest's
filters = [each for each in warnings.filters if each[0] not in {"always", "error"}]
warnings.resetwarnings()
warnings.filters[:] = filters  # type: ignore[index]
warnings.simplefilter("ignore", ResourceWarning, append=True)
tqdm.set_lock(threading.RLock())  # else each rank makes a semaphore, and leaves it
gc.freeze()
