"""The finetune job: a language model learns to answer."""
