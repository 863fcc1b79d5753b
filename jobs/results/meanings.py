"""Meanings of the metrics and results that `show` and the end of a run list."""

MEANINGS = {
    "train/loss": "nats per token, of the last logged step; plots smooth it",
    "train/gradient_norm": "before clipping",
    "train/position": "samples read so far",
    "train/tokens_per_second": "of all ranks",
    "validation/loss": "nats per token, on the first validation.max_sequences",
    "validation/bits_per_byte": "the same loss, comparable between tokenizers",
    "validation/gap": "validation loss minus the mean training loss since the validation before: grows with memorization",
    "system/rank_memory_gib": "resident memory of rank 0",
    "tokens": "in all",
    "loss": "nats per token of the held-out data, on the first max_sequences",
    "bits_per_byte": "the same loss, comparable between tokenizers",
    "perplexity": "e to the power of the loss",
    "n": "sequences that were scored",
    "standard_error": "of the loss",
    "unigram_loss": "loss of a model that only knows how frequent each token is",
    "model_step": "training step of the model",
    "model_weights": "hash of the weights",
    "positions_used": "share of the positions that hold tokens, after packing",
    "too_long": "conversations longer than seq_len",
}
