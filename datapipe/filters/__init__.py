"""Rules that drop documents before they are tokenized, each with a reason that is recorded."""
