"""Print the path of a model's GGUF file, which is written on first use.

Usage: python -m ropewalk.jobs.inference.engines.llamacpp.convert MODEL TYPE
"""

import sys

from ropewalk.cluster.errors import RopewalkError


def main() -> None:
    """Convert in a process of its own, which frees the memory of the model."""
    from ropewalk.jobs.inference.gguf.gguf import gguf_of

    model, type_name = sys.argv[1:]
    try:
        print(gguf_of(model, type_name))  # noqa: T201 - the result of this process
    except RopewalkError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
