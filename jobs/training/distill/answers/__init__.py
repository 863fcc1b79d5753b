"""The answers job: what a served teacher answers to prompts, as conversations to learn from."""
