"""The review page in a real browser, by keyboard alone: nothing in an answer runs, nothing is fetched from elsewhere."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from ropewalk.jobs.serving.feedback.read import exchanges
from ropewalk.jobs.serving.feedback.records import FOLDER, judgements_store
from ropewalk.jobs.serving.feedback.review.export import reviewed_conversations, reviewed_pairs
from ropewalk.jobs.serving.feedback.review.items import Item, Side, find_items
from ropewalk.jobs.serving.feedback.review.judgements import current_judgements, text_of
from ropewalk.jobs.serving.feedback.review.server import ReviewServer
from ropewalk.jobs.serving.feedback.review.session import Review
from tests.browser import complaints, fits_a_phone, need_browser, open_browser
from tests.jobs.serving.feedback.exchanges import exchange
from tests.jobs.serving.feedback.runs import serving_run
from tests.patience import Patience, until

pytestmark = need_browser
EVIL = (
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\"></textarea><b id=owned>",
    "</div></article></form><form action='http://evil.example/'><svg/onload=alert(1)>\u2028\0 & &lt;b&gt; \"'`",
)

CORRECTION = "Say 1 2 s u instead"


def shown(side: Side) -> str:
    """An answer as a browser shows it."""
    return text_of(side.answer).replace("\0", "\ufffd")


@pytest.fixture
def browser() -> Iterator[webdriver.Chrome]:
    with open_browser() as opened:
        yield opened


class Page:
    """Actions and view of a reviewer."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def press(self, *keys: str) -> None:
        self.browser.switch_to.active_element.send_keys(*keys)

    def text(self, name: str) -> str:
        return str(self.browser.find_element(By.CSS_SELECTOR, name).get_property("textContent"))

    def reaches(self, count: str) -> None:
        until(lambda: self.browser.title.endswith(f"· Review · {count}"), Patience.SIGNAL, lambda: self.browser.title)


def choice_of(item: Item, word: str) -> str:
    """Stored choice after `ann` gives this judgement of an item."""
    if item.second is None:
        return {"left": "both", "right": "neither"}.get(word, word)
    left, right = ("first", "second") if item.left_is_first("ann") else ("second", "first")
    return {"left": left, "right": right}.get(word, word)


def test_a_reviewer_compares_corrects_skips_and_undoes_by_keyboard(tmp_path: Path, browser: webdriver.Chrome) -> None:
    requests = [(f"Question {n}? {EVIL[0]}", f"Answer {n} {EVIL[v]}", v) for n in range(4) for v in (0, 1)]
    requests.append(("Alone?", "Only one", 0))
    raw = [(json.dumps({"messages": [{"role": "user", "content": q}]}).encode(), a, v) for q, a, v in requests]
    run = serving_run(tmp_path, [exchange(n, request=q, answered=a, version=f"chat@{v}") for n, (q, a, v) in enumerate(raw)])
    review = Review(run, "ann", ())
    server = ReviewServer(review, list)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    page, order = Page(browser), find_items(exchanges(run.path), {})
    browser.get(server.link())
    assert browser.current_url == f"{server.address}/"  # the token is not left in the address
    assert fits_a_phone(browser)
    keys = iter((("e", "left"), (Keys.ARROW_RIGHT, "right"), ("3", "both"), ("s", "skip")))
    corrected, expected = "", []
    for number, item in enumerate(order):
        page.reaches(f"{number} of 5{corrected}")
        left, right = item.sides("ann")
        assert page.text("#left > .text") == shown(left)
        assert right is None or page.text("#right > .text") == shown(right)
        key, word = next(keys) if right else ("1", "left")
        expected.append(choice_of(item, word))
        page.press(key)
        if key == "e":
            assert browser.switch_to.active_element.get_property("value") == shown(left)
            page.press(Keys.CONTROL, "a", Keys.NULL, CORRECTION)  # whose letters are keys of the page
            page.press(Keys.CONTROL, Keys.ENTER)
            corrected = " · 1 corrected"
    page.reaches(f"5 of 5{corrected}")
    page.press("u")
    page.reaches(f"4 of 5{corrected}")
    page.press("s")
    page.reaches(f"5 of 5{corrected}")
    assert page.text("h1") == "Done"
    assert not browser.find_elements(By.ID, "owned")
    assert complaints(browser) == []
    server.shutdown()
    thread.join()
    server.server_close()
    review.close()

    judgements = current_judgements(judgements_store(run.path / FOLDER).read().to_pylist())["ann"]
    assert [judgements[item.id].choice for item in order] == [*expected[:-1], "skip"]
    assert CORRECTION in [record["chosen"][0]["content"] for record in reviewed_pairs(run).records]
    assert CORRECTION in [record["messages"][-1]["content"] for record in reviewed_conversations(run).records]
