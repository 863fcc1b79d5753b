"""Meanings of the metrics and results that `show` and the end of a run list."""

from ropewalk.jobs.results.metric_names import find_metric

RESULTS = {
    "documents": "of both splits",
    "validation_documents": "held out, of these",
    "vocabulary": "tokens that the tokenizer knows; fewer than requested if the text yields no more",
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


def meaning_of(name: str) -> str:
    """Return the meaning of a metric or result, with its unit; empty for an unknown one."""
    metric = find_metric(name)
    if metric is None:
        return RESULTS.get(name, "")
    return f"{metric.unit}: {metric.meaning}" if metric.unit else metric.meaning
