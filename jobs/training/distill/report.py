"""report.json and report.html of a distillation: what was learnt, what it was worth, and whether the teacher was worth it."""

import json
from typing import Any

from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import write_atomically
from ropewalk.jobs.runs.show.html import Table, page, paragraph
from ropewalk.jobs.training.distill.config import DistillConfig
from ropewalk.jobs.training.distill.measure import FOLDER

_COLUMNS = ("variant", ">bits per byte", ">± SE", ">loss", ">KL from the teacher", ">parameters", ">bytes")


def write_report(context: JobContext, config: DistillConfig, results: dict[str, Any]) -> None:
    """Write both files. Rank 0 calls it."""
    context.fence.check()
    folder = context.run.path / FOLDER
    folder.mkdir(exist_ok=True)
    write_atomically(folder / "report.json", json.dumps(results, indent=1).encode())
    write_atomically(folder / "report.html", page(f"Distillation: {context.run.id}", _sections(config, results)))


def _sections(config: DistillConfig, results: dict[str, Any]) -> list[str]:
    return [paragraph(line) for line in (_what(config), *said(results))] + [_variants(results)]


def _what(config: DistillConfig) -> str:
    mixed = f", mixed with cross entropy (alpha {config.alpha:g})" if config.alpha else ""
    how = config.teacher_logits if config.teacher_logits == "online" else f"cached, {config.cache.method} {config.cache.size}"
    own = config.on_policy
    written = "" if own is None else f" {own.share:.0%} of the samples were written by the student itself."
    return (
        f"The teacher is {config.teacher}, its logits {how}. Learnt: {config.loss} at temperature {config.temperature:g}{mixed}, "
        f"{config.steps} steps of {config.batch.global_batch} sequences of {config.seq_len} tokens.{written}"
    )


def said(results: dict[str, Any]) -> list[str]:
    """What the figures mean, in sentences."""
    lines = []
    if not results.get("table"):
        lines.append("No text is held out: nothing was measured. Preprocess with validation_fraction set.")
    recovered = results.get("recovered")
    if recovered is not None:
        lines.append(f"{recovered:.1%} of the loss that the student lacked at first was won back, on {results['n']} sequences.")
    if "baseline" in results:
        lines.append(results["baseline"]["said"])
    cached = results.get("teacher_logits")
    if cached is not None:
        bias = f" They are biased: {cached['bias']}." if "bias" in cached else ""
        lines.append(f"The teacher's logits take {cached['bytes']:,} bytes, {cached['share_of_full']:.2%} of all in bf16.{bias}")
    return lines


def _variants(results: dict[str, Any]) -> str:
    table = Table("Held-out text", _COLUMNS)
    for row in results.get("table", []):
        figures = ("" if row[key] is None else f"{row[key]:.4f}" for key in ("bits_per_byte", "standard_error", "loss", "kl"))
        table.row(row["variant"], *figures, f"{row['parameters']:,}", f"{row['bytes']:,}")
    return table.html()
