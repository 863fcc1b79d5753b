"""Metrics that jobs report: patterns of names, with units and meanings.

An objective of the user's own adds `train/NAME` and `validation/NAME`.
"""

from fnmatch import fnmatch
from typing import NamedTuple


class Metric(NamedTuple):
    """Unit, meaning, and the jobs that report a metric."""

    unit: str
    meaning: str
    jobs: str


_TRAINING = "pretrain, finetune, align, distill"
_PAIRS = "align with pairs"
_GRPO = "align with grpo"

METRICS = {
    "train/loss": Metric("nats", "loss of the step, averaged over the global batch", _TRAINING),
    "train/learning_rate": Metric("", "learning rate of the step", _TRAINING),
    "train/gradient_norm": Metric("", "norm of the gradient before clipping", _TRAINING),
    "train/tokens_per_second": Metric("tokens/s", "tokens of all ranks since the previous line", _TRAINING),
    "train/mfu": Metric("share", "model FLOPs utilization, on GPUs whose peak is known", _TRAINING),
    "train/position": Metric("samples", "number of the next sample of the run", _TRAINING),
    "goodput/share": Metric("share", "training in the time for which the run had nodes, so far", _TRAINING),
    "goodput/*_seconds": Metric("s", "time of this class since the submission, by rank 0's clock", _TRAINING),
    "ranks/*_seconds": Metric("s", "time of a step in this phase without waits, mean over the ranks", _TRAINING),
    "ranks/slowest": Metric("", "rank that is busy longest", _TRAINING),
    "ranks/slowest_share": Metric("share", "its busy time beyond the median of the others", _TRAINING),
    "system/rank_memory_gib": Metric("GiB", "largest memory of rank 0 so far", _TRAINING),
    "system/gpu_memory_gib": Metric("GiB", "largest memory of rank 0's GPU so far", _TRAINING),
    "validation/loss": Metric("nats", "loss on held-out samples", _TRAINING),
    "validation/bits_per_byte": Metric("bits/byte", "held-out loss per byte of text, comparable between tokenizers", _TRAINING),
    "validation/gap": Metric(
        "nats", "held-out loss minus the training loss since the validation before; measures memorization", _TRAINING
    ),
    "train/log_z": Metric("nats", "log of the softmax denominator, with `z_loss`; also validation/", "pretrain, finetune"),
    "train/divergence": Metric("nats", "divergence of the student from the teacher; also validation/", "distill"),
    "train/cross_entropy": Metric("nats", "cross-entropy with the text; also validation/", "distill"),
    "train/reward_accuracy": Metric("share", "pairs whose preferred answer has the higher reward; also validation/", _PAIRS),
    "train/reward_margin": Metric("", "reward of the preferred answer minus that of the other; also validation/", _PAIRS),
    "train/rewards_chosen": Metric("", "implicit reward of the preferred answers; also validation/", _PAIRS),
    "train/rewards_rejected": Metric("", "implicit reward of the other answers; also validation/", _PAIRS),
    "train/logp_chosen": Metric("nats", "log-probability of the preferred answers; also validation/", _PAIRS),
    "train/logp_rejected": Metric("nats", "log-probability of the other answers; also validation/", _PAIRS),
    "train/length_chosen": Metric("tokens", "length of the preferred answers; also validation/", _PAIRS),
    "train/length_rejected": Metric("tokens", "length of the other answers; also validation/", _PAIRS),
    "train/reward_accuracy_longer": Metric("share", "accuracy where the preferred answer is longer; also validation/", _PAIRS),
    "train/reward_accuracy_shorter": Metric("share", "accuracy where the preferred answer is shorter; also validation/", _PAIRS),
    "train/kl": Metric("nats", "divergence from the reference model; also validation/", "align"),
    "train/reward": Metric("", "mean reward of the generated answers", _GRPO),
    "train/reward/*": Metric("", "mean of one reward function, if there are several; also validation/", _GRPO),
    "train/importance_ratio": Metric("", "probability of the answers now, over that when they were generated", _GRPO),
    "train/off_policy_fraction": Metric("share", "tokens whose ratio differs from 1 by more than 0.1", _GRPO),
    "train/clipped_fraction": Metric("share", "tokens whose ratio is clipped", _GRPO),
    "train/answer_tokens": Metric("tokens", "length of the generated answers", _GRPO),
    "train/truncated_fraction": Metric("share", "answers cut at `max_new_tokens`", _GRPO),
    "train/staleness": Metric("steps", "age of the weights that generated the answers", _GRPO),
    "evaluation/*_standard_error": Metric("", "standard error of the score of this name", "evaluate"),
    "evaluation/*": Metric("", "score of a task, `evaluation/TASK/METRIC`", "evaluate"),
    "audit/*_standard_error": Metric("", "standard error of the score of this name", "audit"),
    "audit/*": Metric("", "score of an audit; of one suite as `audit/SUITE/SCORE`", "audit"),
    "compress/*/more_bits_per_byte": Metric("bits/byte", "loss of a variant beyond that of the unchanged model", "compress"),
    "compress/*/bits_per_byte": Metric("bits/byte", "held-out loss of a variant, in the engine that serves it", "compress"),
    "compress/*/kl": Metric("nats", "divergence of a variant from the unchanged model", "compress"),
    "compress/*/bytes": Metric("bytes", "size of a variant", "compress"),
    "serve/requests_per_second": Metric("requests/s", "rate of the last seconds", "serve"),
    "serve/replicas": Metric("", "replicas that serve", "serve"),
    "serve/requests": Metric("", "requests so far", "serve"),
    "serve/errors": Metric("", "requests so far that failed", "serve"),
    "serve/running": Metric("", "requests that run now", "serve"),
    "serve/queued": Metric("", "requests that wait now", "serve"),
}


def find_metric(name: str) -> Metric | None:
    """Return a metric by its name, or None; a name below `validation/` may be described by that below `train/`."""
    names = (name, name.replace("validation/", "train/", 1))
    return next((metric for each in names for pattern, metric in METRICS.items() if fnmatch(each, pattern)), None)
