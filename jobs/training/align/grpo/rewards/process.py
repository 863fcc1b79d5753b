"""The process in which rewards are called: one request a line, one answer a line. It may hang or die without harm."""

import ctypes
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from ropewalk.jobs.training.align.reward_functions import Reward, make_reward

OK, NOTHING, NOT_A_NUMBER = "ok", "nothing", "not a number"
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Read the rewards to make, then requests until the end of the input."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):  # whoever started this process died before the line above
        return
    logging.disable(logging.WARNING)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a reward prints goes to the log
    try:
        rewards = [make_reward(one["name"], one["options"]) for one in json.loads(sys.stdin.readline())]
    except Exception as error:
        _say(replies, {"error": str(error)})
        return
    _say(replies, {})
    for line in sys.stdin:
        request = json.loads(line)
        value, outcome = call(rewards[request["reward"]], request["answer"], request["record"])
        _say(replies, {"value": value, "outcome": outcome})


def _say(replies: TextIO, value: dict[str, Any]) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


def call(reward: Reward, answer: str, record: Mapping[str, Any]) -> tuple[float | None, str]:
    """The value of an answer, or None and in words why there is none."""
    try:
        value: Any = reward(answer, record)
        if value is None:
            return None, NOTHING
        number = float(value)
    except BaseException as error:  # sys.exit in a reward is its failure too
        return None, f"{type(error).__name__}: {error}"[:300]
    return (number, OK) if math.isfinite(number) else (None, f"{NOT_A_NUMBER}: {number}")


if __name__ == "__main__":
    main()
