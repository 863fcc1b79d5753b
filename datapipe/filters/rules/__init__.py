"""The published rules: of Gopher, C4 and FineWeb."""
