"""Tasks of this program: YAML as lm-eval has it, over files that the user has."""
