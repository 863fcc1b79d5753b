"""A set of hashes and a counter of them, as open addressing in arrays that are never cleared: an entry counts by its stamp."""

import numpy as np
from numba import njit

from ropewalk.datapipe.text.kernels import COMPILE, MIX


@njit(**COMPILE)
def capacity(entries):
    """The least power of two that leaves half of the slots free."""
    size = 16
    while size < 2 * entries:
        size *= 2
    return size


@njit(inline="always")
def slot_of(key, keys, stamps, mask, stamp):
    """The slot that holds the key, or the free one that will."""
    slot = np.int64((np.uint64(key) * MIX) >> np.uint64(20)) & mask
    while stamps[slot] == stamp and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@njit(**COMPILE)
def seen_before(key, keys, stamps, mask, stamp):
    """Whether the key is in the set; it is from now on."""
    slot = slot_of(key, keys, stamps, mask, stamp)
    if stamps[slot] == stamp:
        return True
    stamps[slot] = stamp
    keys[slot] = key
    return False
