"""Texts as bytes in Arrow buffers: characters, words and lines, found by compiled kernels without a Python object for each."""
