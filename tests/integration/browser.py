"""A real Chromium without a window, driven by the chromedriver that belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.integration.servers import program

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_PATIENCE_SECONDS = 10


class Browser:
    """One tab. It waits for what it is asked for, since a page needs its time."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self._wait: WebDriverWait[webdriver.Chrome] = WebDriverWait(
            driver, _PATIENCE_SECONDS, poll_frequency=0.02
        )

    @classmethod
    @contextmanager
    def running(cls, directory: Path, *, scripts: bool = True) -> Iterator[Self]:
        """Start one whose profile is in ``directory``, which is empty."""
        options = webdriver.ChromeOptions()
        options.binary_location = program("chromium")
        for flag in (*_FLAGS, f"--user-data-dir={directory}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        options.accept_insecure_certs = True  # of the tests' own authority
        if not scripts:
            no_scripts = {"profile.managed_default_content_settings.javascript": 2}
            options.add_experimental_option("prefs", no_scripts)
        driver = webdriver.Chrome(options, Service(program("chromedriver")))
        try:
            yield cls(driver)
        finally:
            driver.quit()

    @property
    def path(self) -> str:
        """Where it is, without the host."""
        return "/" + self.driver.current_url.split("/", 3)[3]

    def resize(self, width: int, height: int) -> None:
        """To the size of a phone, or any other, as the page sees it."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, colour_scheme: str) -> None:
        """`dark` or `light`."""
        features = [{"name": "prefers-color-scheme", "value": colour_scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def one(self, selector: str) -> WebElement:
        """The first element, once it is there and can be seen."""
        found: WebElement = self.until(lambda: self._visible(selector))
        return found

    def until(self, condition: Callable[[], Any]) -> Any:
        """What ``condition`` gives, once that is true."""
        return self._wait.until(lambda _: condition())

    def _visible(self, selector: str) -> WebElement | None:
        found = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return next((each for each in found if each.is_displayed()), None)

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def complaints(self) -> list[str]:
        """What the console has said since last asked: refusals of the page's policy, errors of its script."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]  # selenium's
        return [entry["message"] for entry in entries]
