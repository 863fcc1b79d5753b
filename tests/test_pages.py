"""All pages for people: one style, a title that names the subject, nothing from elsewhere, readable on a phone, light or dark."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from ropewalk.cluster.page import style
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.jobs.evaluation.audit.asking.question import Judged
from ropewalk.jobs.evaluation.audit.config import AuditConfig
from ropewalk.jobs.evaluation.audit.report.write import write_report as write_audit
from ropewalk.jobs.evaluation.evaluate.comparison_report import write_comparison
from ropewalk.jobs.evaluation.evaluate.config import EvaluateConfig
from ropewalk.jobs.evaluation.evaluate.report import write_report as write_evaluation
from ropewalk.jobs.models.cards.write import write_data_cards
from ropewalk.jobs.models.compress.report import write_report as write_variants
from ropewalk.jobs.orchestration.sweep.report.html_report import write_report as write_sweep
from ropewalk.jobs.results.score import Score
from ropewalk.jobs.runs.models.comparison import compare
from ropewalk.jobs.runs.models.evaluations import find_evaluations
from ropewalk.jobs.runs.show.run_page import write_run_page
from ropewalk.jobs.serving.drift.config import DriftConfig
from ropewalk.jobs.serving.drift.detect import detect
from ropewalk.jobs.serving.drift.page import write_report as write_drift
from ropewalk.jobs.serving.drift.sample import Sample
from ropewalk.jobs.serving.refresh.report import write_report as write_refresh
from tests.fakes.documents import make, some_documents, write_lines
from tests.fakes.sweep import make_sweep
from tests.jobs.evaluation.evaluate.test_compare import evaluation, rights
from tests.jobs.serving.drift.texts import asked

ROOT = Path(__file__).resolve().parents[1]
PAGES = {  # with their subjects
    "data": "ropes",
    "evaluation": "trained-1",
    "comparison": "one-0 and two-0",
    "audit": "trained-1",
    "variants": "trained-1",
    "sweep": "twist",
    "drift": "now.jsonl against before.jsonl",
    "refresh": "assistant",
}
SLOW_PAGES = {  # to make, of the same style as the others
    "sweep": "imports pictures and importances; make test runs test_pictures_and_a_page_that_needs_nothing_else",
    "drift": "embeds and tests texts; make test runs test_the_command_tells_what_differs_and_writes_a_page",
}
BINS = [{"from": n / 10, "to": (n + 1) / 10, "confidence": n / 10 + 0.05, "accuracy": n / 11, "tokens": 9} for n in range(10)]
SEEN = """return [
    document.documentElement.scrollWidth,
    [...document.images].every(image => image.naturalWidth > 0),
    document.querySelector('.facts').innerText,
]"""
LONG = "a_name_without_any_place_to_break_" * 4


def make_page(kind: str, folder: Path) -> Path:
    """Write the page with its own writer, from results as the job has them."""
    runs = folder / "runs"
    config = {"model": "/models/trained-1", "seed": 3, "watch": "assistant", "data": None, LONG: LONG}
    gate = {"passed": False, "failed": [{"name": "loss", "require": "<= 2", "words": "loss is 4 (n = 9), must be <= 2"}]}
    match kind:
        case "data":
            records = [{**record, "source": f"{LONG}/{number}"} for number, record in enumerate(some_documents(60))]
            make(write_lines(folder / "in.jsonl", records), folder / "ropes")
            write_data_cards(StoragePath(str(folder / "ropes")))
            return folder / "ropes/report/report.html"
        case "sweep":
            return write_sweep(make_sweep(runs, 12), folder / "sweep.png")[-1]
        case "drift":
            sides = [(f"{name}.jsonl", asked(kind, 60, seed)) for seed, (name, kind) in enumerate(SIDES)]
            now, before = (Sample(name=name, texts=tuple(texts), total=60) for name, texts in sides)
            return write_drift(detect(now, before, DriftConfig(rounds=0)), folder)
        case "comparison":
            for name, share in (("one", 0.7), ("two", 0.4)):
                evaluation(runs, rights(share, 60, 3), name=name)
            sides_compared = [find_evaluations(str(path)) for path in sorted(runs.iterdir()) if (path / "run.yaml").is_file()]
            names = ("/models/one-0", "/models/two-0")
            return write_comparison(compare(*sides_compared, names=names, seeds=False), folder / "comparison.html")
    run = RunDir.create("measured", {"job": kind, "config": config}, runs)
    if kind == "evaluation":
        calibration = {"ece": 0.05, "standard_error": 0.01, "n": 90, "bins": BINS}
        held_out = {"loss": 4.0, "standard_error": 0.1, "n": 9, "bits_per_byte": 1.9, "perplexity": 54.6, "unigram_loss": 6.0}
        results = {**held_out, "token_calibration": calibration, "gate": gate, "generations": [{"prompt": LONG, "text": LONG}]}
        return write_evaluation(run, EvaluateConfig(model="/models/trained-1", data="/data"), results, None)
    if kind == "audit":
        score = Score(value=0.4, standard_error=0.1, n=9, hash="h")
        judged = Judged(
            scores={"rate": score}, items=[], tables={"Groups": [{"group": LONG, "reasons": {"a": 2}}]}, notes=[], plots={}
        )
        audit = AuditConfig(model="/models/trained-1", suites=["pairs.jsonl"])
        write_audit(run, audit, judged, gate, model="/models/trained-1", step=4)
        return run.path / "audit/report.html"
    if kind == "variants":
        rows = [
            {"variant": name, "engine": "transformers", "bits_per_byte": 1 + n, "bytes": 9e6 - n, "per_token_ms": 1 + n}
            for n, name in enumerate(("dense", "int4"))
        ]
        return write_variants(run, "/models/trained-1", rows, gate)
    write_refresh(run)
    return run.path / "report.html"


SIDES = (("now", "bread"), ("before", "ropes"))


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if not all(programs):
        pytest.skip("needs chromium and chromedriver; on Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(flag)
    options.binary_location = str(programs[0])
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(programs[1])))
    yield opened
    opened.quit()


def emulate(browser: webdriver.Chrome, *, width: int, theme: str) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def brightness(browser: webdriver.Chrome) -> int:
    color = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", color)[:3]))


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.soak(SLOW_PAGES[kind])) if kind in SLOW_PAGES else kind for kind in PAGES],
)
def test_every_page_has_the_style_its_subject_and_nothing_from_elsewhere(
    kind: str, tmp_path: Path, browser: webdriver.Chrome
) -> None:
    path = make_page(kind, tmp_path)
    text = path.read_text()
    assert style() in text
    assert re.search(r"<title>(.*) · .*</title>", text)[1].startswith(PAGES[kind])  # type: ignore[index]
    assert not re.search(r"https?://|url\(|@import|<link|<iframe", text)
    assert {source.partition(",")[0] for source in re.findall(r' src="([^"]*)"', text)} <= {"data:image/png;base64"}
    for target in re.findall(r' href="([^"]*)"', text):
        assert (path.parent / target).exists(), target
    emulate(browser, width=390, theme="light")
    browser.get(path.as_uri())
    for theme in ("light", "dark"):
        emulate(browser, width=390, theme=theme)
        width, complete, facts = browser.execute_script(SEEN)
        assert width == 390, "no sideways scrolling of the page on a phone"
        assert (brightness(browser) > 600) == (theme == "light")
        assert complete
        assert re.search(r"\b20\d\d-\d\d-\d\d", facts), "a date"


def test_no_page_has_a_style_of_its_own() -> None:
    sources = [path for folder in ("cluster", "datapipe", "jobs", "sharding") for path in (ROOT / folder).rglob("*.py")]
    styled = {str(path.relative_to(ROOT)) for path in sources if re.search(r"<style|<!doctype", path.read_text(), re.IGNORECASE)}
    served_with_it = {"jobs/runs/ui/server.py", "jobs/serving/feedback/review/page.py"}
    assert styled == {"cluster/page.py", *served_with_it}


def test_a_page_links_to_the_pages_of_its_run_its_model_and_its_data(tmp_path: Path) -> None:
    model = RunDir.create("trained", {"job": "finetune", "config": {}}, tmp_path)
    write_run_page(model, model.path / "samples.html", "Trained tokens", [])
    (tmp_path / "ropes/report").mkdir(parents=True)
    (tmp_path / "ropes/report/report.html").touch()
    config: dict[str, Any] = {"model": model.id, "data": str(tmp_path / "ropes")}
    run = RunDir.create("scored", {"job": "evaluate", "config": config}, tmp_path)
    write_run_page(run, run.path / "audit/report.html", "Audit", [])
    page = write_run_page(run, run.path / "evaluation/report.html", "Evaluation", [])
    links = dict(re.findall(r'<a href="([^"]*)">([^<]*)</a>', page.read_text()))
    assert links == {
        "../audit/report.html": "audit",
        f"../../{model.id}/samples.html": f"trained tokens of {model.id}",
        "../../ropes/report/report.html": "data set ropes",
    }
