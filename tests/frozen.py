"""Have collections of garbage leave out all that is imported so far: processes that are forked from this one are half as long."""

import gc

gc.freeze()
