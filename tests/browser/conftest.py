"""Headless Chromium, driven over its own driver; pages of every kind, made once."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from orchestrator.reports.write import write_report
from tests.orchestrator import stored_runs

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
KINDS = ("run", "diverged", "compare", "sweep")


class Page:
    """A browser with one page at a time."""

    def __init__(self, driver: webdriver.Chrome, folder: Path) -> None:
        self._driver, self._folder = driver, folder

    def open(self, kind: str, *, width: int = 1280, scheme: str = "light", media: str = "") -> None:
        """Show the page of a kind at this width in pixels, light or dark, on screen or as in print."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", {"media": media, "features": [feature]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", size)
        self._driver.get("about:blank")
        self.logs("performance"), self.logs("browser")  # those of the page before
        self._driver.get(f"file://{self._folder / kind}.html")

    def call(self, command: str, arguments: dict[str, Any]) -> Any:
        """A command of the DevTools protocol."""
        return self._driver.execute_cdp_cmd(command, arguments)

    def run(self, script: str) -> Any:
        """The value that the script returns."""
        return self._driver.execute_script(script)

    def logs(self, kind: str) -> list[dict[str, Any]]:
        """Entries since the last call."""
        return self._driver.get_log(kind)


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of each of KINDS as <kind>.html."""
    root = tmp_path_factory.mktemp("pages")
    settings = ("optimizer.lr=0.0123", "loss.kl_weight=0")
    stored_runs.store_run(root)
    stored_runs.store_run(
        root, "a-run-with-quite-a-long-name-that-has-to-break-somewhere-0001", broken=True, settings=settings
    )
    stored_runs.store_sweep(root)
    names = {"run": ["digits-0001"], "sweep": ["table2-digits"]}
    names["diverged"] = ["a-run-with-quite-a-long-name-that-has-to-break-somewhere-0001"]
    names["compare"] = [*names["run"], *names["diverged"]]
    for kind in KINDS:
        write_report(names[kind], storage=str(root), out=root / f"{kind}.html")
    return root


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """The browser, with a profile in this new folder."""
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    assert all(found.values()), f"tests/browser/run.sh installs what is missing: {found}"
    options = Options()
    options.binary_location = str(found["chromium"])
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found["chromedriver"]))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="session")
def page(pages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield Page(driver, pages)
