"""Which language a text is in, by py3langid's model, which lies in its wheel."""
