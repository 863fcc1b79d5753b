"""Write the cards of an exported model, and the cards and the page of a data set."""

import json
import time
from dataclasses import replace
from pathlib import Path

from ropewalk.cluster.page import Link
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.run.files import write_atomically, write_json
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.report.page import PAGE, data_page
from ropewalk.datapipe.report.report import REPORT
from ropewalk.jobs.models.cards.bom import bill_of_materials
from ropewalk.jobs.models.cards.croissant import croissant
from ropewalk.jobs.models.cards.data_card import data_card
from ropewalk.jobs.models.cards.data_facts import read_data_facts
from ropewalk.jobs.models.cards.model_card import model_card
from ropewalk.jobs.models.cards.model_facts import read_model_facts

MODEL_CARD, BILL = "README.md", "ml-bom.json"
DATA_CARD, CROISSANT = "report/data-card.md", "report/croissant.json"


def write_model_cards(run: RunDir, directory: Path, step: int | None) -> None:
    """Write README.md and ml-bom.json of a run's model beside its weights."""
    facts = read_model_facts(run, directory, step)
    write_atomically(directory / MODEL_CARD, model_card(facts))
    write_json(directory / BILL, bill_of_materials(facts))


def write_data_cards(storage: StoragePath, published: str | None = None) -> None:
    """Write data-card.md, croissant.json and report.html into the report of a data set. Raises DataError if it is not complete.

    `published` is a day such as 2026-01-31; unset: that of an earlier croissant.json of the same content, or else today.
    """
    facts = read_data_facts(storage)
    folder = facts.name
    # named by its content: the bytes of a data set do not depend on its path
    facts = replace(facts, name=f"data-{facts.manifest.hash.removeprefix('xxh3:')[:8]}")
    day = published or _published_before(storage, facts.version) or time.strftime("%Y-%m-%d", time.gmtime())
    storage.write(DATA_CARD, data_card(facts).encode())
    storage.write(CROISSANT, (json.dumps(croissant(facts, day), indent=1, ensure_ascii=False) + "\n").encode())
    if facts.report:
        files = [*(Path(name).name for name in (DATA_CARD, CROISSANT, REPORT)), "../manifest.json"]
        links = [Link(Path(name).name, name) for name in files]
        report = json.loads(storage.read(REPORT))  # with paths, unlike the cards, which may be published
        storage.write(PAGE, data_page(folder, facts.manifest, report, day, links))


def _published_before(storage: StoragePath, version: str) -> str | None:
    try:
        earlier = json.loads(storage.read(CROISSANT))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return str(earlier["datePublished"]) if earlier.get("version") == version else None
