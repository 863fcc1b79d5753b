"""The Python environment of a run: built once, packed into one file, and unpacked on every node."""
