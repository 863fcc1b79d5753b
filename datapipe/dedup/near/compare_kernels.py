"""Compare pairs of candidates that share a band by their shingles, and join similar ones to clusters."""

import numpy as np
from numba import njit, types

from ropewalk.datapipe.text.kernels import COMPILE, HASHES

ALL_PAIRS = 64  # up to so many documents of a band all pairs are compared; of more, each with the first and nearest ones
NEIGHBOURS = 8
KEYS, INDEX = types.uint64[:, ::1], types.int64[::1]
CLUSTER = (types.int64, types.int64)  # low, high; without types numba would also compile for the literal low = 0


@njit(**COMPILE)
def jaccard(shingles, first, count, other, others):
    """Return the Jaccard similarity of two ascending sets."""
    a, b, common = first, other, 0
    while a < first + count and b < other + others:
        if shingles[a] == shingles[b]:
            common += 1
            a += 1
            b += 1
        elif shingles[a] < shingles[b]:
            a += 1
        else:
            b += 1
    union = count + others - common
    return common / union if union else 0.0


@njit(**COMPILE)
def _root(parent, node):
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(**COMPILE)
def _share_earlier_band(keys, a, b, band):
    """Return True if two documents share an earlier band and were compared there."""
    for earlier in range(band):
        if keys[a, earlier] == keys[b, earlier] and keys[a, earlier]:
            return True
    return False


@njit(**COMPILE)
def _compare(a, b, keys, band, starts, counts, shingles, similarity, parent, degree, totals):
    """Compare a pair and join it if it is similar enough."""
    if _share_earlier_band(keys, a, b, band):
        return
    small, large = min(counts[a], counts[b]), max(counts[a], counts[b])
    totals[0] += 1
    if small < similarity * large or not large:
        return
    if jaccard(shingles, starts[a], counts[a], starts[b], counts[b]) >= similarity:
        totals[1] += 1
        degree[a] += 1
        degree[b] += 1
        root_a, root_b = _root(parent, a), _root(parent, b)
        parent[max(root_a, root_b)] = min(root_a, root_b)


@njit((*CLUSTER, types.int64, KEYS, INDEX, INDEX, HASHES, types.float64, INDEX, INDEX, INDEX), **COMPILE)
def _band(low, high, band, keys, starts, counts, shingles, similarity, parent, degree, totals):
    """Compare the documents of a cluster that share a key of one band."""
    order = low + np.argsort(keys[low:high, band], kind="mergesort")
    at = 0
    while at < len(order):
        end = at + 1
        while end < len(order) and keys[order[end], band] == keys[order[at], band]:
            end += 1
        many = end - at > ALL_PAIRS
        for k in range(at + 1, end):
            nearest = max(at, k - NEIGHBOURS) if many else at
            for j in range(nearest, k):
                _compare(order[j], order[k], keys, band, starts, counts, shingles, similarity, parent, degree, totals)
            for j in range(at, min(at + NEIGHBOURS, nearest) if many else at):
                _compare(order[j], order[k], keys, band, starts, counts, shingles, similarity, parent, degree, totals)
        at = end


@njit((*CLUSTER, INDEX, INDEX, INDEX), **COMPILE)
def _choose(low, high, parent, degree, stays):
    """Keep the document of each cluster that is similar to most others; on ties the first."""
    for node in range(low, high):
        stays[node] = node
    best = stays
    for node in range(low, high):
        root = _root(parent, node)
        if degree[node] > degree[best[root]]:
            best[root] = node
    for node in range(high - 1, low - 1, -1):
        root = _root(parent, node)
        if node != root:
            stays[node] = best[root]


@njit(
    types.void(INDEX, KEYS, INDEX, INDEX, HASHES, types.float64, INDEX, INDEX),
    **COMPILE,
)
def decide(clusters, keys, starts, counts, shingles, similarity, stays, totals):
    """Write to `stays`, for each candidate in the order of clusters and rows, the one that is kept for it (itself if kept).

    `totals`: number of pairs compared, and of similar pairs.
    """
    parent = np.arange(len(clusters))
    degree = np.zeros(len(clusters), dtype=np.int64)
    low = 0
    while low < len(clusters):
        high = low + 1
        while high < len(clusters) and clusters[high] == clusters[low]:
            high += 1
        for band in range(keys.shape[1]):
            _band(low, high, band, keys, starts, counts, shingles, similarity, parent, degree, totals)
        _choose(low, high, parent, degree, stays)
        low = high
