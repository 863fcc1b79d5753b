"""Filters that drop or rewrite documents before tokenization; the reason for each dropped document is recorded."""
