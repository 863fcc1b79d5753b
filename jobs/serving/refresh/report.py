"""What a refresh did, for a person who has a minute: report.html, and report.json for programs."""

import time
from collections.abc import Mapping
from typing import Any

from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_atomically, write_json
from ropewalk.jobs.runs.show.html import Table, page, paragraph
from ropewalk.jobs.serving.refresh.plan import WORDS
from ropewalk.jobs.serving.refresh.rounds import read_rounds

REPORT, PAGE = "report.json", "report.html"
Facts = Mapping[str, Any]


def results_of(run: RunDir) -> dict[str, Any]:
    """The results of the run: the outcome of each round, and the last promoted version."""
    rounds = read_rounds(run)
    promoted = [facts["version"] for facts in rounds if facts.get("outcome") == "promoted"]
    told = [
        {key: facts[key] for key in ("round", "outcome", "words", "candidate", "version", "base") if key in facts}
        for facts in rounds
    ]
    return {"rounds": told, "outcome": told[-1].get("outcome") if told else None, "promoted": promoted, "report": PAGE}


def write_report(run: RunDir) -> None:
    """Write both files anew."""
    rounds = read_rounds(run)
    write_json(run.path / REPORT, {"run": run.id, "watch": run.record["config"]["watch"], "rounds": rounds})
    sections = [paragraph(headline(run, rounds))]
    for facts in reversed(rounds):
        sections += _round(facts)
    write_atomically(run.path / PAGE, page(f"Refresh of {run.record['config']['watch']}", sections))


def headline(run: RunDir, rounds: list[dict[str, Any]]) -> str:
    """All of it in a sentence or two."""
    if not rounds:
        return f"{run.id} has not begun a round."
    last = rounds[-1]
    return f"Round {last['round']} of {run.id}: {outcome_of(last)}."


def outcome_of(facts: Facts) -> str:
    """What became of a round, or where it stands, in words."""
    if "outcome" in facts:
        return f"{facts['outcome']}: {facts['words']}"
    if "trigger" not in facts:
        return "it waits for what begins it"
    if "asked" in facts and "approval" not in facts:
        return f"{facts['candidate']} has passed its gate and waits for a person: `ropewalk approve RUN`"
    if "canary began" in facts and "canary" not in facts:
        return f"{facts['version']} answers a share of the conversations"
    steps = [name.removeprefix("step ") for name in facts if name.startswith("step ")]
    return f"under way; done: {', '.join(WORDS[step] for step in steps) or 'nothing yet'}"


def _round(facts: Facts) -> list[str]:
    sections = [f"<h2>Round {int(facts['round'])}</h2>\n", paragraph(f"{outcome_of(facts)}.")]
    sections.append(_course(facts).html())
    verdict = facts.get("verdict")
    if verdict:
        compared = Table("Candidate and production", ("measure", ">candidate", ">production", ">n", "", "evidence"))
        for one in verdict["comparisons"]:
            word = "worse" if one["worse"] else ""
            cells = (f"{one['candidate']:.4g}", f"{one['production']:.4g}", str(one["n"]), word, one["words"])
            compared.row(one["name"], *cells)
        gates = Table("Gate", ("run", "score", "must be", ">is", ">standard error", ">n"))
        for gate in verdict["gates"]:
            for name, figure in gate["figures"].items():
                figures = (_number(figure.get("value")), _number(figure.get("standard_error")), str(figure.get("n", "")))
                gates.row(gate["run"], name, figure["require"], *figures)
        sections += [compared.html(), gates.html()]
    canary = facts.get("canary")
    if canary:
        told = Table("Canary", ("", ">answers", ">failed", ">liked", ">disliked"))
        for side in ("candidate", "production"):
            told.row(side, *(str(canary[side][key]) for key in ("answers", "errors", "liked", "disliked")))
        sections.append(told.html())
    return sections


def _course(facts: Facts) -> Table:
    """What happened, in order."""
    course = Table("Course", ("when", "what", "run or model", "outcome"))
    course.row(_when(facts.get("began")), "waited for what begins it", "", "")
    if "trigger" in facts:
        course.row(_when(facts["trigger"]["time"]), "began", "", facts["trigger"]["words"])
        course.row("", "trained from", str(facts.get("base", "")), "")
    for name, step in facts.items():
        if not name.startswith("step "):
            continue
        kind = name.removeprefix("step ")
        said = ""
        if kind == "collect" and "data" in facts:
            said = ", ".join(f"{count} {word}" for word, count in facts["data"].items() if word != "run" and count)
        course.row(_when(step["ended"]), WORDS[kind], step["run"], said)
    if "verdict" in facts:
        course.row("", "gate", str(facts["candidate"]), "passed" if facts["verdict"]["passed"] else "refused")
    if "approval" in facts:
        course.row("", "a person", facts["approval"]["by"], "yes" if facts["approval"]["yes"] else "no")
    if "canary began" in facts:
        course.row(_when(facts["canary began"]), "canary", str(facts["version"]), str(facts.get("canary", {}).get("words", "")))
    if "outcome" in facts:
        course.row(_when(facts["ended"]), facts["outcome"], str(facts.get("version", "")), facts["words"])
    return course


def _when(moment: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) if moment else ""


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else ""
