"""A process that computes rewards: one request per line, one reply per line. It may hang or die without harm."""

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
    """Read the rewards to create, then requests until the end of the input."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):  # the parent died before prctl
        return
    logging.disable(logging.WARNING)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # prints of a reward go to the log
    try:
        rewards = [make_reward(entry["name"], entry["options"]) for entry in json.loads(sys.stdin.readline())]
    except Exception as error:
        _reply(replies, {"error": str(error)})
        return
    _reply(replies, {})
    for line in sys.stdin:
        request = json.loads(line)
        value, outcome = call(rewards[request["reward"]], request["answer"], request["record"])
        _reply(replies, {"value": value, "outcome": outcome})


def _reply(replies: TextIO, value: dict[str, Any]) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


def call(reward: Reward, answer: str, record: Mapping[str, Any]) -> tuple[float | None, str]:
    """Return the value of an answer and the outcome; the value is None unless the outcome is OK."""
    try:
        value: Any = reward(answer, record)
        if value is None:
            return None, NOTHING
        number = float(value)
    except BaseException as error:  # including sys.exit in a reward
        return None, f"{type(error).__name__}: {error}"[:300]
    return (number, OK) if math.isfinite(number) else (None, f"{NOT_A_NUMBER}: {number}")


if __name__ == "__main__":
    main()
