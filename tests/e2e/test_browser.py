# SPDX-License-Identifier: Apache-2.0
"""The status page in a real browser, of a daemon that serves simulated GPUs to the fake kubelet: drawn, live, and harmless."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from deviceplugin.testing import Kubelet, Pod, nvml

RESOURCE = "nvidia.com/gpu"
NASTY = '<img src=x onerror="document.title=1">'

CONFIG = """\
version: v1
listen: 127.0.0.1:{port}
plugins:
  - plugin: gpu
    config: {{library: {library}}}
resources:
  nvidia.com/gpu: {{replicas: 4}}
"""


@dataclass
class Site:
    """The daemon whose page it is, and what it depends on."""

    machine: nvml.Scenario
    kubelet: Kubelet
    process: subprocess.Popen[bytes]
    url: str
    log: Path


@pytest.fixture
def site() -> Iterator[Site]:
    root = Path(tempfile.mkdtemp(prefix="dp-", dir="/tmp"))
    machine = nvml.dgx1_v100()
    library = machine.install(root / "lib")
    nvml.write_host(machine, root)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (root / "c.yaml").write_text(CONFIG.format(port=port, library=library))
    kubelet = Kubelet(root, seed=1).start()
    with (root / "log").open("wb") as log:
        command = [sys.executable, "-m", "deviceplugin", "run", "--config", str(root / "c.yaml"), "--root", str(root)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        kubelet.wait_for(RESOURCE, healthy=32)
        yield Site(machine, kubelet, process, f"http://127.0.0.1:{port}/", root / "log")
    finally:
        process.terminate()
        process.wait(10)
        kubelet.stop()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def browser(e2e_bin: Path) -> Iterator[webdriver.Chrome]:
    assert e2e_bin, "the browser is installed with the rest"
    options = Options()
    # It must ask nobody for anything: updates and experiments are off.
    quiet = ("background-networking", "component-update", "sync", "gpu", "quic", "default-apps", "extensions")
    for flag in ("headless", "no-sandbox", "no-first-run", "hide-scrollbars", *(f"disable-{one}" for one in quiet)):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = "/usr/bin/chromium"
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    driver.set_window_size(1300, 1600)
    yield driver
    driver.quit()


@pytest.fixture
def wait(browser: webdriver.Chrome, site: Site) -> Callable[[Callable[[], object], str], None]:
    """Waits until something holds in the page; a failure leaves a picture beside the log where E2E_PICTURES says."""

    def until(holds: Callable[[], object], what: str) -> None:
        WebDriverWait(browser, 20, 0.05).until(lambda _driver: holds(), f"{what}\n{site.log.read_text()}")

    return until


def picture(browser: webdriver.Chrome, name: str) -> None:
    if folder := os.environ.get("E2E_PICTURES"):
        browser.save_screenshot(os.path.join(folder, f"{name}.png"))


def opened(browser: webdriver.Chrome, site: Site) -> None:
    def serves() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(site.url.rpartition(":")[2].strip("/")))) == 0

    WebDriverWait(browser, 20, 0.05).until(lambda _driver: serves(), "the server to answer")
    browser.get(site.url)


def cards(browser: webdriver.Chrome, style: str = "") -> int:
    return len(browser.find_elements(By.CSS_SELECTOR, f".card{style}"))


def text(browser: webdriver.Chrome) -> str:
    return str(browser.execute_script("return document.body.innerText"))


def test_the_page_shows_the_machine_and_follows_it(browser: webdriver.Chrome, site: Site, wait: Callable[[Callable[[], object], str], None]) -> None:
    opened(browser, site)
    assert cards(browser) == 8
    assert len(browser.find_elements(By.CSS_SELECTOR, "svg circle.unit")) == 8
    assert len(browser.find_elements(By.CSS_SELECTOR, "svg path.way")) == 16, "the hybrid cube mesh"
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
    assert [one for one in loaded if not one.endswith("/live")] == [], "one file, no other"
    browser.execute_script("window.same = true")
    pod = Pod.requesting(RESOURCE, 2, name=NASTY)
    assert site.kubelet.admit(pod)
    wait(lambda: len(browser.find_elements(By.CSS_SELECTOR, ".card .held")) == 2, "the pod's slots")
    assert NASTY in text(browser), "a name is text"
    site.machine.inject_xid(5, 79)
    wait(lambda: cards(browser, ".unhealthy") == 1, "the broken GPU")
    assert "unhealthy: xid:79" in text(browser)
    assert len(browser.find_elements(By.CSS_SELECTOR, "circle.unit.unhealthy")) == 1
    picture(browser, "broken")
    assert browser.execute_script("return window.same"), "the page was never loaded again"
    assert browser.title.endswith(": devices"), "no script of a name ran"
    said = browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert [one for one in said if one["level"] == "SEVERE"] == []


def test_a_page_whose_daemon_is_gone_says_so(browser: webdriver.Chrome, site: Site, wait: Callable[[Callable[[], object], str], None]) -> None:
    opened(browser, site)
    assert not browser.find_element(By.ID, "stale").is_displayed()
    site.process.terminate()
    wait(lambda: browser.find_element(By.ID, "stale").is_displayed(), "the page to say that it is old")
    assert cards(browser) == 8, "what was last known stays"


def test_the_page_fits_a_telephone_and_a_dark_room(browser: webdriver.Chrome, site: Site) -> None:
    browser.set_window_size(520, 1600)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    try:
        opened(browser, site)
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), "nothing sticks out"
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert max(int(one) for one in ground.strip("rgb()").split(",")) < 60
        picture(browser, "dark")
    finally:
        browser.set_window_size(1300, 1600)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
