"""Prompts of a task of reasoning-gym, for grpo with the reward `reasoning_gym`: an item a line, with all that its scorer needs.

python gym_prompts.py TASK NUMBER [SEED] > prompts.jsonl
"""

import json
import sys

import reasoning_gym


def main() -> None:
    """Write them; the same seed writes the same ones."""
    task, number, *seed = sys.argv[1:]
    for item in reasoning_gym.create_dataset(task, size=int(number), seed=int(seed[0]) if seed else 0):
        print(json.dumps({"prompt": item["question"], **item}))


if __name__ == "__main__":
    main()
