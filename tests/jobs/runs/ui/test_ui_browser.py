"""The page about runs in a real browser, by keyboard: list, several runs, one run; no text of a run becomes a script."""

from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser import complaints, fits_a_phone, need_browser, open_browser
from tests.jobs.runs.ui.serving import EVIL, make_run, served
from tests.jobs.shell import Shell
from tests.patience import Patience, until

pytestmark = need_browser


def texts(browser: webdriver.Chrome, selector: str) -> list[str]:
    # one look: a page may be about to change
    script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)"
    return list(browser.execute_script(script, selector))


def press(browser: webdriver.Chrome, *keys: str) -> None:
    browser.switch_to.active_element.send_keys(*keys)


def accessible(browser: webdriver.Chrome) -> bool:
    """Return True if every control and picture has a name, and no text has less contrast than 4.5 to 1 with its background."""
    script = (Path(__file__).parent / "accessible.js").read_text()
    assert browser.execute_script(script) == []
    return True


def test_runs_are_found_compared_and_read_by_keyboard(shell: Shell) -> None:
    root = shell.home / "runs"
    runs = [make_run(root, name, [3.0, 2.0, 1.5], name=EVIL, seed=seed) for seed, name in enumerate(("alpha", "beta", "gamma"))]
    with served() as access, open_browser() as browser:
        browser.get(access.link())
        until(lambda: len(texts(browser, "#runs tbody tr")) == 3, Patience.START)
        assert browser.current_url == f"{access.address}/"  # the token is not left in the address
        assert texts(browser, "#runs td:nth-child(6)") == ["1.5"] * 3
        assert len(texts(browser, "#runs svg.spark polyline")) == 3
        assert fits_a_phone(browser)
        assert accessible(browser)

        press(browser, Keys.TAB)
        press(browser, "alpha")
        assert len(texts(browser, "#runs tbody tr")) == 1
        press(browser, Keys.CONTROL, "a", Keys.NULL, Keys.BACKSPACE)
        boxes = browser.find_elements(By.CSS_SELECTOR, "#runs input[type=checkbox]")
        for box in boxes[:2]:
            box.send_keys(Keys.SPACE)
        browser.find_element(By.CSS_SELECTOR, ".tools button").send_keys(Keys.ENTER)
        until(lambda: len(texts(browser, "svg.chart polyline")) == 2, Patience.SIGNAL)
        assert texts(browser, "section a") == [runs[2].id, runs[1].id]
        differences = texts(browser, "[aria-label='keys that differ'] td")
        assert differences == ["seed", "2", "1"]
        assert fits_a_phone(browser)
        assert accessible(browser)

        browser.find_element(By.CSS_SELECTOR, "section a").send_keys(Keys.ENTER)
        until(lambda: texts(browser, "h1") == [runs[2].id] and texts(browser, "svg.chart polyline"), Patience.SIGNAL)
        assert texts(browser, ".why") == ["It succeeded."]
        assert "rank 0 in all_reduce" in texts(browser, "details summary")[0]
        assert f"upon {EVIL}" in texts(browser, "[aria-label='samples'] td")
        titles = texts(browser, "h2")
        assert {"Why", "Curves", "Goodput", "Cost", "Hangs", "Samples", "Events", "Configuration"} <= set(titles)
        assert fits_a_phone(browser)
        assert accessible(browser)
        assert not browser.find_elements(By.ID, "owned")
        assert complaints(browser) == []
