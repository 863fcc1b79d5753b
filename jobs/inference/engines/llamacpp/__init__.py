"""The engine of CPUs: llama.cpp's own server from the xllamacpp wheel, behind the OpenAI API of all engines."""
