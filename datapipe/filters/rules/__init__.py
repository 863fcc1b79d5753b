"""Published filter rules: Gopher, C4, FineWeb."""
