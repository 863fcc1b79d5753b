"""What a model leaves as beside Hugging Face's own format: GGUF, which llama.cpp serves, and what llama.cpp itself says of it."""
