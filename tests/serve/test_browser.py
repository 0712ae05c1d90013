"""The local page as people use it: in a real Chromium, from a file on the disk to the score."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aqa_pipeline.config import ServeConfig
from aqa_pipeline.scoring.explainer import Explainer
from tests.support.explained import QUERY, explainer_of
from tests.support.live_server import LiveServer, live_server

selenium = pytest.importorskip("selenium")
pytest.importorskip("starlette")

WIDTHS = [1280, 400]  # a desk, a telephone
#: Nothing is fetched or sent, and the profile is new.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)  # fmt: skip


def find(*names: str) -> str:
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    pytest.skip(f"no {names[0]} here: apt-get install chromium chromium-driver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = find("chromium", "chromium-browser", "google-chrome")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    # The driver's path is given, so that none is looked for or downloaded.
    driver = webdriver.Chrome(options=options, service=Service(find("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def explainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explainer]:
    with explainer_of(tmp_path_factory.mktemp("project")) as found:
        yield found


@pytest.fixture(scope="module")
def server(explainer: Explainer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    from aqa_pipeline.serve.server import site_of, work_of

    uploads = tmp_path_factory.mktemp("uploads")
    run = explainer.scorer.runs()[0]
    site = site_of(
        run.folder,
        explainer,
        project=explainer._project,
        config=ServeConfig(max_megabytes=1),
        uploads=uploads,
    )
    with live_server(work_of(explainer), uploads, site=site) as found:
        yield found


class Visit:
    """The page in a window of a given width."""

    def __init__(self, browser: Any, server: LiveServer, width: int) -> None:
        self._browser = browser
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        browser.get_log("browser")  # of the visit before
        browser.get(server.address)

    def one(self, selector: str) -> Any:
        return self._browser.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self._browser.find_elements("css selector", selector)
        return found

    def wait(self, condition: Any, seconds: float = 120) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self._browser, seconds, poll_frequency=0.1).until(condition)

    def js(self, code: str, *arguments: Any) -> Any:
        return self._browser.execute_script(f"return {code}", *arguments)

    def hand_over(self, path: Path) -> Any:
        """Choose a file; gives its card once its job has ended."""
        before = len(self.all(".job"))
        self.one("#file").send_keys(str(path))
        self.wait(lambda _: len(self.all(".job")) == before + 1)
        card = self.all(".job")[0]
        self.wait(lambda _: card.get_attribute("class") in ("job done", "job failed"))
        return card

    @property
    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.js(wide))

    @property
    def complaints(self) -> list[str]:
        """What the browser wrote into its console, refusals of the server left out."""
        entries = self._browser.get_log("browser")
        return [e["message"] for e in entries if "Failed to load resource" not in e["message"]]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_clip_is_dropped_scored_and_explained(
    browser: Any, server: LiveServer, explainer: Explainer, width: int
) -> None:
    page = Visit(browser, server, width)
    assert page.overflow <= 0
    root = explainer.scorer.runs()[0].folder.parent.parent
    difficulty = page.one("[name=difficulty]")
    difficulty.clear()
    difficulty.send_keys("2.0")
    card = page.hand_over(root / QUERY)
    assert card.get_attribute("class") == "job done", card.text
    expected = explainer.scorer.score(root / QUERY, difficulty=2.0)
    score = card.find_element("css selector", "[data-result=score]")
    assert score.text.split()[0] == f"{expected.score:.2f}"
    assert page.overflow <= 0, "the page scrolls sideways"

    films = card.find_elements("css selector", "video")
    assert len(films) == 4  # the clip, its heat, an exemplar on either side
    page.wait(lambda _: all(page.js("arguments[0].readyState >= 2", film) for film in films))
    assert {page.js("arguments[0].videoWidth", film) for film in films} == {224}
    assert all(film.size["width"] > 120 for film in films)

    bars = card.find_elements("css selector", ".snippets button")
    assert len(bars) == 3
    assert all(bar.size["width"] > 20 for bar in bars)
    tree = card.find_element("css selector", "svg[role=img]")
    assert tree.get_attribute("aria-label").startswith("Tree of 2 layers")
    assert tree.size["width"] > 200
    assert page.complaints == []


def test_films_run_together_and_stop_where_they_are_told(
    browser: Any, server: LiveServer, explainer: Explainer
) -> None:
    from selenium.webdriver.common.keys import Keys

    page = Visit(browser, server, 1280)
    root = explainer.scorer.runs()[0].folder.parent.parent
    card = page.hand_over(root / QUERY)
    films = card.find_elements("css selector", "video")
    page.wait(lambda _: all(page.js("arguments[0].readyState >= 2", film) for film in films))
    card.find_elements("css selector", ".snippets button")[1].click()
    label = card.find_element("css selector", "[data-frame-label]")
    assert label.text == "frame 4"
    assert card.find_element("css selector", "[data-play]").text == "Play"
    page.wait(lambda _: all(page.js("!arguments[0].seeking", film) for film in films))
    times = [page.js("arguments[0].currentTime", film) for film in films]
    assert times == pytest.approx([4.5 / 25] * 4, abs=0.01)
    slider = card.find_element("css selector", "[data-scrub]")
    slider.send_keys(Keys.ARROW_RIGHT)  # the keyboard steps by one picture
    assert label.text == "frame 5"
    card.find_element("css selector", "[data-play]").click()
    page.wait(lambda _: page.js("!arguments[0].paused", films[3]), seconds=20)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_text_file_named_mp4_is_refused_in_words(
    browser: Any, server: LiveServer, tmp_path: Path, width: int
) -> None:
    page = Visit(browser, server, width)
    text = tmp_path / "dive.mp4"
    text.write_text("this is no video " * 100)
    card = page.hand_over(text)
    assert card.get_attribute("class") == "job failed"
    assert card.find_element("css selector", "h2").text == "dive.mp4"
    said = card.find_element("css selector", "[role=status]").text
    assert said.startswith("not a video file: its first bytes are those of no known kind")
    assert page.overflow <= 0
    assert server.left_behind() == []


def test_too_large_and_broken_files_are_refused_in_words(
    browser: Any, server: LiveServer, tmp_path: Path
) -> None:
    page = Visit(browser, server, 400)
    large, broken = tmp_path / "large.mp4", tmp_path / "broken.mp4"
    large.write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 1_500_000)
    broken.write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 10_000)
    said = page.hand_over(large).find_element("css selector", "[role=status]").text
    assert "at most 1 MB are taken" in said
    said = page.hand_over(broken).find_element("css selector", "[role=status]").text
    assert said.startswith("cannot read broken.mp4 as a video")
    assert server.left_behind() == []


def test_a_name_is_text_and_a_clip_can_be_forgotten(
    browser: Any, server: LiveServer, explainer: Explainer, tmp_path: Path
) -> None:
    page = Visit(browser, server, 400)
    root = explainer.scorer.runs()[0].folder.parent.parent
    evil = tmp_path / "<img src=x onerror=alert(1)> 🤿.mp4"
    shutil.copy(root / QUERY, evil)
    card = page.hand_over(evil)
    assert card.find_element("css selector", "h2").text == evil.name
    assert card.find_elements("css selector", "h2 img") == []
    assert page.overflow <= 0
    before = len(server.queue)
    card.find_element("css selector", "[data-forget]").click()
    assert page.all(".job") == []
    page.wait(lambda _: len(server.queue) == before - 1, seconds=20)
    assert page.complaints == []


def test_the_runs_report_opens_under_it(browser: Any, server: LiveServer) -> None:
    page = Visit(browser, server, 1280)
    page.one("#report summary").click()
    frame = page.one("#report iframe")
    page.wait(lambda _: frame.get_attribute("src"), seconds=20)
    assert frame.get_attribute("src").endswith("/report")


def test_everything_is_reached_by_keyboard(browser: Any, server: LiveServer) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page = Visit(browser, server, 1280)
    names = []
    for _ in range(5):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        focus = "document.activeElement"
        names.append(page.js(f"{focus}.id || {focus}.name || {focus}.tagName"))
    assert names == ["file", "difficulty", "start", "end", "SUMMARY"]
