"""A real browser for tests, without a window."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium import webdriver

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--window-size=1300,900")
PHONE = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
need_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs chromium and chromedriver; on Debian: apt-get install chromium chromium-driver"
)


@contextmanager
def open_browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.binary_location = str(BROWSER)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        yield opened
    finally:
        opened.quit()


def fits_a_phone(browser: webdriver.Chrome) -> bool:
    """Return True if a page has no need to be scrolled sideways on a phone."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    width = browser.execute_script("return document.documentElement.scrollWidth")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    return bool(width == PHONE["width"])


def complaints(browser: webdriver.Chrome) -> list[dict[str, str]]:
    """Return the errors and warnings in the log of the browser."""
    logged = browser.execute("getLog", {"type": "browser"})["value"]
    return [entry for entry in logged if entry["level"] in {"SEVERE", "WARNING"}]
