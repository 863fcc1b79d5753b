"""The finetune job: train a language model to answer."""
