"""Data sets of conversations: formats, chat templates, loss masks, packing."""
