"""Personal data in texts: found by shape and checksum, replaced by placeholders that say what stood there."""
