"""Words for people."""


def counted(number: float | str, noun: str) -> str:
    """`1 node`, `2.5 GPUs`, `1..4 nodes`."""
    text = f"{number:g}" if isinstance(number, float) else str(number)
    return f"{text} {noun}{'' if text == '1' else 's'}"
