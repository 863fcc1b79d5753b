"""Personal data in texts: detection by shape and checksum, replacement by placeholders."""
