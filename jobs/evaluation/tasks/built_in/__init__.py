"""Built-in tasks: YAML files in lm-eval's format, over item files of the user."""
