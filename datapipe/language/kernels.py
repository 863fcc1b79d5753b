"""The language model in machine code: a walk through its automaton, and the sum of what its features say."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datapipe.kernel import kernel

HAS_SMALL, HAS_CAPITAL, NOT_ASCII = 1, 2, 4  # what letters a text has
CODE_SYMBOLS = b'{}()[]<>;=_/\\*&|#$@+^~`"%'
CODE_LINE_ENDS = b";{}:,()[]=\\>&|"


@kernel
def look(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], kinds: NDArray[np.uint8], looks: NDArray[np.uint8], found: Any
) -> None:
    """Of each text which letters it has; in `found` its visible bytes, code symbols, lines, lines that end as code."""
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
        found[text, 0], found[text, 1], found[text, 2], found[text, 3] = visible, symbols, lines, code_lines


@kernel
def add_scores(data: NDArray[np.uint8], offsets: NDArray[np.int64], model: Any, scores: NDArray[np.float32]) -> None:
    """Naive Bayes over the features that the automaton visits: log(1 + count) times the weights of each; zeros without any."""
    moves, rows, features, weights, priors = model
    counts = np.zeros(len(weights), np.int32)
    seen = np.empty(len(weights), np.int32)
    logs = np.empty(256, np.float32)
    for count in range(len(logs)):
        logs[count] = np.float32(np.log1p(np.float32(count)))
    for text in range(len(offsets) - 1):
        state, many = 0, 0
        for at in range(offsets[text], offsets[text + 1]):
            state = moves[(np.int64(rows[state]) << 8) + data[at]]
            feature = features[state]
            if feature >= 0:
                if counts[feature] == 0:
                    seen[many] = feature
                    many += 1
                counts[feature] += 1
        if many:
            for label in range(len(priors)):
                scores[text, label] = priors[label]
        for place in range(many):
            feature = seen[place]
            count = counts[feature]
            weight = logs[count] if count < len(logs) else np.float32(np.log1p(np.float32(count)))
            counts[feature] = 0
            for label in range(len(priors)):
                scores[text, label] += weight * weights[feature, label]
