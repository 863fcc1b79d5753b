"""From files to documents: finding, opening, reading, ingesting."""
