"""`python -m jobs.engines.llamacpp.convert MODEL TYPE`: print where the GGUF file of a model lies; made the first time."""

import sys

from cluster.errors import RopewalkError


def main() -> None:
    """Convert in a process of its own: the model in memory is gone with it."""
    from jobs.formats.gguf import gguf_of

    model, type_name = sys.argv[1:]
    try:
        print(gguf_of(model, type_name))  # noqa: T201 - the answer of a process of its own
    except RopewalkError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
