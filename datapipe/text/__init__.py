"""Texts as UTF-8 in Arrow buffers; compiled kernels find characters, words and lines without a Python object for each."""
