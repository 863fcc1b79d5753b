"""Sets of hashes with open addressing. Arrays are never cleared: an entry is valid if its stamp is the current one."""

import numpy as np
from numba import njit, types

from ropewalk.datapipe.text.kernels import COMPILE, MIX


@njit(types.int64(types.int64), **COMPILE)
def capacity(entries):
    """Return the least power of two that leaves half of the slots free."""
    size = 16
    while size < 2 * entries:
        size *= 2
    return size


@njit(inline="always")
def slot_of(key, keys, stamps, mask, stamp):
    """Return the slot that holds the key, or the free slot for it."""
    slot = np.int64((np.uint64(key) * MIX) >> np.uint64(20)) & mask
    while stamps[slot] == stamp and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@njit(**COMPILE)
def add_key(key, keys, stamps, mask, stamp):
    """Add the key to the set; return True if it was there before."""
    slot = slot_of(key, keys, stamps, mask, stamp)
    if stamps[slot] == stamp:
        return True
    stamps[slot] = stamp
    keys[slot] = key
    return False
