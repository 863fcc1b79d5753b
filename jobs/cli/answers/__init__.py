"""Types of what `--json` prints, command by command. Only schemas and tests import them."""
