"""Report of a data set: kept, dropped and changed documents with reasons, as a page and as JSON."""
