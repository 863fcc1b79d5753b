"""CrowS-Pairs (Nangia et al., 2010.00133): pairs of sentences that differ in the words for a group."""

import difflib
from typing import Any

from ropewalk.jobs.evaluation.audit.suites.pair import Pair, make_pair, require_columns

MASK = "[MASK]"


def crows_pair(row: dict[str, Any], where: str, suite: str, number: int) -> Pair:
    """Convert a row of the authors' file, or of the variant with a mask and two words, the first of which is the stereotype.

    The file has no targets: pairs that exchange the same words form one cluster.
    """
    if row.get("sentence") is not None:
        require_columns(row, ("sentence", "mask1", "mask2"), where)
        more, less = (row["sentence"].replace(MASK, row[word]) for word in ("mask1", "mask2"))
        exchanged = (row["mask1"], row["mask2"])
    else:
        require_columns(row, ("sent_more", "sent_less"), where)
        more, less = row["sent_more"], row["sent_less"]
        exchanged = differing_words(more, less)
    target = "/".join(sorted(word.strip(" .,;:!?\"'").lower() for word in exchanged))
    return make_pair(
        where, suite=suite, number=number, more=more.strip(), less=less.strip(), target=target, bias_type=row.get("bias_type")
    )


def differing_words(sentence: str, other: str) -> tuple[str, str]:
    """Return the words of each sentence that differ from the other sentence."""
    first, second = sentence.split(), other.split()
    changed = [code for code in difflib.SequenceMatcher(None, first, second, autojunk=False).get_opcodes() if code[0] != "equal"]
    left = " ".join(word for _, i, j, _, _ in changed for word in first[i:j])
    right = " ".join(word for _, _, _, i, j in changed for word in second[i:j])
    return left, right
