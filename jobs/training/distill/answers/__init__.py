"""The answers job: conversations to train on, from the answers of a served teacher to prompts."""
