"""The engine of CPUs: llama.cpp's own server, out of the wheel xllamacpp, behind the OpenAI API that all engines share."""
