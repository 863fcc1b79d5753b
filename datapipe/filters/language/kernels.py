"""Compiled language model: walk the automaton over a text, and sum the weights of its features."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ropewalk.datapipe.text.kernel import kernel

HAS_SMALL, HAS_CAPITAL, NOT_ASCII = 1, 2, 4  # bits: kinds of letters that a text has
HISTORY = 8  # bytes that determine a state: no feature is longer (py3langid's have 6)
PIECE = 4096  # bytes read of each quarter: enough even for a book
CODE_SYMBOLS = b'{}()[]<>;=_/\\*&|#$@+^~`"%'
CODE_LINE_ENDS = b";{}:,()[]=\\>&|"


@kernel
def look(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], kinds: NDArray[np.uint8], looks: NDArray[np.uint8], counts: Any
) -> None:
    """Write each text's kinds of letters to `looks`, and its visible bytes, code symbols, lines and code lines to `counts`."""
    for text in range(len(offsets) - 1):
        letters, visible, symbols, lines, code_lines, last = 0, 0, 0, 0, 0, np.uint8(0)
        for at in range(offsets[text], offsets[text + 1]):
            byte = data[at]
            kind = kinds[byte]
            letters |= kind & 7
            if byte > 32:
                visible += 1
                symbols += (kind >> 3) & 1
                last = byte
            elif byte == 10 and last:
                lines += 1
                code_lines += (kinds[last] >> 4) & 1
                last = np.uint8(0)
        if last:
            lines += 1
            code_lines += (kinds[last] >> 4) & 1
        looks[text] = letters
        counts[text, 0], counts[text, 1], counts[text, 2], counts[text, 3] = visible, symbols, lines, code_lines


@kernel
def add_scores(data: NDArray[np.uint8], offsets: NDArray[np.int64], model: Any, scores: NDArray[np.float32]) -> None:
    """Naive Bayes over the features that the automaton visits: log(1 + count) times the weights of each; 0 without features."""
    automaton, weights, priors = model
    counts = np.zeros(len(weights), np.int32)
    features = np.empty(len(weights) + 1, np.int32)
    visited = np.empty(np.diff(offsets).max() + 1 if len(offsets) > 1 else 1, np.int32)
    logs = np.empty(256, np.float32)
    for count in range(len(logs)):
        logs[count] = np.float32(np.log1p(np.float32(count)))
    for text in range(len(offsets) - 1):
        many = 0
        for step in range(walk(data[offsets[text] : offsets[text + 1]], automaton, visited)):
            feature = visited[step]
            features[many] = feature
            many += int(counts[feature] == 0)
            counts[feature] += 1
        sums = scores[text]
        if many:
            for label in range(len(sums)):
                sums[label] = priors[label]
        for index in range(many):
            feature = features[index]
            count = counts[feature]
            weight = logs[count] if count < len(logs) else np.float32(np.log1p(np.float32(count)))
            counts[feature] = 0
            row = weights[feature]
            for label in range(len(sums)):
                sums[label] += weight * row[label]


@kernel
def walk(text: NDArray[np.uint8], automaton: Any, visited: NDArray[np.int32]) -> int:
    """Write the features that the automaton visits, in no particular order, and return their number.

    The table exceeds the CPU cache: the four quarters of a text are walked side by side so that cache misses overlap. Of a
    long text, only the start of each quarter is walked.
    """
    moves, rows, features = automaton
    begin = np.int64(rows[0]) << 8
    quarter, end = max((len(text) - HISTORY) // 4, 0), len(text)
    first, second, third = quarter, 2 * quarter, 3 * quarter  # starts of the other three quarters
    if quarter > PIECE:
        quarter, end = PIECE, third + PIECE
    a, b, c, d = begin, begin, begin, begin
    if quarter > HISTORY:
        for back in range(-HISTORY, 0):
            b = np.int64(rows[moves[b + text[first + back]]]) << 8
            c = np.int64(rows[moves[c + text[second + back]]]) << 8
            d = np.int64(rows[moves[d + text[third + back]]]) << 8
    else:
        quarter = third = 0
    many = 0
    for at in range(quarter):
        state_a, state_b = moves[a + text[at]], moves[b + text[first + at]]
        state_c, state_d = moves[c + text[second + at]], moves[d + text[third + at]]
        a, b = np.int64(rows[state_a]) << 8, np.int64(rows[state_b]) << 8
        c, d = np.int64(rows[state_c]) << 8, np.int64(rows[state_d]) << 8
        for state in (state_a, state_b, state_c, state_d):
            visited[many] = features[state]
            many += int(features[state] >= 0)  # without a branch, which would be mispredicted half of the time
    for at in range(third + quarter, end):
        state = moves[d + text[at]]
        d = np.int64(rows[state]) << 8
        visited[many] = features[state]
        many += int(features[state] >= 0)
    return many
