"""A tiny real language model: its data, its training and its GGUF files."""
