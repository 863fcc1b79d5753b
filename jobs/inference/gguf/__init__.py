"""GGUF, the file format of llama.cpp: writing it, and llama.cpp's library to verify it."""
