"""Jobs of the training loop: pre-training, fine-tuning, alignment, distillation, pruning."""
