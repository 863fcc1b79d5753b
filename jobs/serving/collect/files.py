"""Names of the files that `collect` writes into its run."""

CONVERSATIONS, PAIRS, MANIFEST = "data/conversations.jsonl", "data/pairs.jsonl", "data/manifest.json"
