"""Report of a refresh: report.html for people, report.json for programs."""

from collections.abc import Mapping
from typing import Any

from ropewalk.cluster.page import Table, date_words, heading, paragraph
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_json
from ropewalk.jobs.runs.show.run_page import subject_of, write_run_page
from ropewalk.jobs.serving.refresh.plan import STEP_NAMES
from ropewalk.jobs.serving.refresh.rounds import read_rounds

REPORT, PAGE = "report.json", "report.html"
Facts = Mapping[str, Any]


def results_of(run: RunDir) -> dict[str, Any]:
    """Return the results of the run: the outcome of each round, and the promoted versions."""
    rounds = read_rounds(run)
    promoted = [facts["version"] for facts in rounds if facts.get("outcome") == "promoted"]
    outcomes = [
        {key: facts[key] for key in ("round", "outcome", "message", "candidate", "version", "base") if key in facts}
        for facts in rounds
    ]
    return {
        "rounds": outcomes,
        "outcome": outcomes[-1].get("outcome") if outcomes else None,
        "promoted": promoted,
        "report": PAGE,
    }


def write_report(run: RunDir) -> None:
    """Write both files."""
    rounds = read_rounds(run)
    watched = run.record["config"]["watch"]
    write_json(run.path / REPORT, {"run": run.id, "watch": watched, "rounds": rounds})
    sections = [paragraph(headline(run, rounds))]
    for facts in reversed(rounds):
        sections += _round(facts)
    write_run_page(run, run.path / PAGE, "Refresh", sections, subject=subject_of(watched), facts={"watches": watched})


def headline(run: RunDir, rounds: list[dict[str, Any]]) -> str:
    """One sentence on the newest round."""
    if not rounds:
        return f"{run.id} has not started a round yet."
    last = rounds[-1]
    return f"Round {last['round']} of {run.id}: {outcome_of(last)}."


def outcome_of(facts: Facts) -> str:
    """Describe the outcome of a round, or its current stage."""
    if "outcome" in facts:
        return f"{facts['outcome']}: {facts['message']}"
    if "trigger" not in facts:
        return "waiting for its trigger"
    if "approval_requested" in facts and "approval" not in facts:
        return f"{facts['candidate']} has passed its gate and needs approval: `ropewalk approve RUN`"
    if "canary_started" in facts and "canary" not in facts:
        return f"{facts['version']} answers a share of the conversations"
    steps = [name.removeprefix("step ") for name in facts if name.startswith("step ")]
    return f"in progress; done: {', '.join(STEP_NAMES[step] for step in steps) or 'nothing yet'}"


def _round(facts: Facts) -> list[str]:
    sections = [heading(f"Round {int(facts['round'])}"), paragraph(f"{outcome_of(facts)}.")]
    sections.append(_timeline(facts).html())
    verdict = facts.get("verdict")
    if verdict:
        comparisons = Table("Candidate and production", ("measure", ">candidate", ">production", ">n", "verdict", "evidence"))
        for measure in verdict["comparisons"]:
            verdict_text = "worse" if measure["worse"] else ""
            cells = (
                f"{measure['candidate']:.4g}",
                f"{measure['production']:.4g}",
                str(measure["n"]),
                verdict_text,
                measure["message"],
            )
            comparisons.row(measure["name"], *cells)
        gates = Table("Gate", ("run", "score", "required", ">value", ">± SE", ">n"))
        for gate in verdict["gates"]:
            for name, figure in gate["figures"].items():
                figures = (_number(figure.get("value")), _number(figure.get("standard_error")), str(figure.get("n", "")))
                gates.row(gate["run"], name, figure["require"], *figures)
        sections += [comparisons.html(), gates.html()]
    canary = facts.get("canary")
    if canary:
        ratings = Table("Canary", ("", ">answers", ">failed", ">liked", ">disliked"))
        for side in ("candidate", "production"):
            ratings.row(side, *(str(canary[side][key]) for key in ("answers", "errors", "liked", "disliked")))
        sections.append(ratings.html())
    return sections


def _timeline(facts: Facts) -> Table:
    """Table of the round's events, in order."""
    timeline = Table("Timeline", ("time", "event", "run or model", "details"))
    timeline.row(_when(facts.get("waiting_since")), "waiting for trigger", "", "")
    if "trigger" in facts:
        timeline.row(_when(facts["trigger"]["time"]), "started", "", facts["trigger"]["message"])
        timeline.row("", "base model", str(facts.get("base", "")), "")
    for name, step in facts.items():
        if not name.startswith("step "):
            continue
        kind = name.removeprefix("step ")
        details = ""
        if kind == "collect" and "data" in facts:
            details = ", ".join(f"{count} {label}" for label, count in facts["data"].items() if label != "run" and count)
        timeline.row(_when(step["ended"]), STEP_NAMES[kind], step["run"], details)
    if "verdict" in facts:
        timeline.row("", "gate", str(facts["candidate"]), "passed" if facts["verdict"]["passed"] else "refused")
    if "approval" in facts:
        timeline.row("", "approval", facts["approval"]["by"], "yes" if facts["approval"]["yes"] else "no")
    if "canary_started" in facts:
        timeline.row(
            _when(facts["canary_started"]), "canary", str(facts["version"]), str(facts.get("canary", {}).get("message", ""))
        )
    if "outcome" in facts:
        timeline.row(_when(facts["ended"]), facts["outcome"], str(facts.get("version", "")), facts["message"])
    return timeline


def _when(moment: float | None) -> str:
    return date_words(moment) if moment else ""


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else ""
