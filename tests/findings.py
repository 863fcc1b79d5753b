"""What the tests of a suite came to: read from records, told to people, kept as evidence."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ALLOWED_FLAKES = 2  # on record; the next one of the same test is a failure
LONGEST_REASON = 160


@dataclass
class Finding:
    """One test: how it ended, how long it took, what was seen if it failed."""

    name: str
    outcome: str = "passed"  # passed | failed | skipped | lost (its pytest died before it was over)
    seconds: float = 0.0
    text: str = ""

    @property
    def failed(self) -> bool:
        """It failed, or never ended."""
        return self.outcome in {"failed", "lost"}

    @property
    def reason(self) -> str:
        """The first line that says what went wrong."""
        errors = [line[1:].strip() for line in self.text.splitlines() if re.match(r"E\s+\S", line)]
        told = [*errors, *(line.strip() for line in self.text.splitlines() if line.strip()), "no reason was recorded"]
        return told[0][:LONGEST_REASON]


@dataclass
class Part:
    """What one pytest process has recorded so far."""

    name: str
    collected: int = 0
    findings: dict[str, Finding] = field(default_factory=dict)

    @property
    def over(self) -> int:
        """How many tests have ended."""
        return sum(1 for finding in self.findings.values() if finding.outcome != "lost")

    @property
    def failed(self) -> list[Finding]:
        """Those that did not pass."""
        return [finding for finding in self.findings.values() if finding.failed]


def read_part(name: str, record: Path) -> Part:
    """What a record holds; tests that were collected and did not end count as lost."""
    part, over = Part(name), set[str]()
    for line in record.read_text().splitlines() if record.exists() else []:
        try:
            told = json.loads(line)
        except ValueError:  # cut short: its pytest was killed
            continue
        if "collected" in told:
            part.collected = len(told["collected"])
            for test in told["collected"]:
                part.findings.setdefault(test, Finding(test, "lost"))
        elif "over" in told:
            over.add(told["over"])
        elif "id" in told:
            _add(part.findings.setdefault(told["id"], Finding(told["id"], "lost")), told)
    for finding in part.findings.values():
        if finding.name not in over and finding.outcome != "failed":
            finding.outcome, finding.text = "lost", "its pytest ended before this test did"
    return part


def _add(finding: Finding, told: dict[str, str | float]) -> None:
    finding.seconds += float(told["seconds"])
    if finding.outcome == "lost":
        finding.outcome, finding.text = str(told["outcome"]), str(told["text"])
    elif told["outcome"] == "failed" or (told["outcome"] == "skipped" and finding.outcome == "passed"):
        finding.outcome = str(told["outcome"])
        finding.text += f"{told['text']}\n"


def keep_evidence(folder: Path, finding: Finding) -> Path:
    """Write down what was seen of a failure; where that lies."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / (re.sub(r"[^A-Za-z0-9_.-]+", "-", finding.name.removeprefix("tests/"))[:150] + ".txt")
    place.write_text(f"{finding.name}\n\n{finding.text}\n")
    return place


def times_flaky(record: Path, name: str) -> int:
    """How often a test was flaky so far."""
    lines = record.read_text().splitlines() if record.exists() else []
    return sum(json.loads(line)["test"] == name for line in lines if line.strip())


def add_flake(record: Path, finding: Finding, when: str) -> None:
    """Put a flaky test on record."""
    with record.open("a") as stream:
        stream.write(json.dumps({"test": finding.name, "when": when, "reason": finding.reason}) + "\n")


def slowest(findings: Iterable[Finding], count: int) -> Iterator[str]:
    """The tests that took longest, one line each."""
    for finding in sorted(findings, key=lambda each: -each.seconds)[:count]:
        yield f"{finding.seconds:7.1f} s  {finding.name}"


def skips(findings: Iterable[Finding]) -> Iterator[str]:
    """Why tests were skipped, and how many for each reason."""
    reasons: dict[str, int] = {}
    for finding in findings:
        if finding.outcome == "skipped":
            reason = finding.text.strip().removeprefix("Skipped: ")
            reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in sorted(reasons.items()):
        yield f"skipped {count}: {reason}"


def report_lines(title: str, parts: Iterable[Part], flaky: Iterable[Finding], failed: Iterable[Finding]) -> Iterator[str]:
    """A report in Markdown: every part, every failure with what was seen, every flaky test, the time of every test."""
    parts = list(parts)
    yield f"# {title}\n"
    yield "| part | tests | failed at first | seconds |\n|---|---|---|---|"
    for part in parts:
        yield f"| {part.name} | {part.over} | {len(part.failed)} | {sum(f.seconds for f in part.findings.values()):.0f} |"
    for heading, found in (("Failed", list(failed)), ("Flaky", list(flaky))):
        yield f"\n## {heading}: {len(found)}\n"
        for finding in found:
            yield f"### {finding.name}\n\n```\n{finding.text.strip()}\n```\n"
    everything = [finding for part in parts for finding in part.findings.values()]
    yield from (
        "\n## Skipped\n",
        *skips(everything),
        "\n## Every test by time\n",
        "```",
        *slowest(everything, len(everything)),
        "```",
    )
