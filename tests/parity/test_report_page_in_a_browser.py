"""The page in a real browser: it opens in silence, its sliders work, and it fits its window."""

import io
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pytest
from PIL import Image

from triptych.parity.html.page import report_page
from triptych.parity.report import ParityReport
from triptych.types import Array, ImagePixels

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Locator, sync_playwright

CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

ColorScheme: TypeAlias = Literal["light", "dark"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

CONTRAST = """() => {
  const linear = level => level <= 0.04045 ? level / 12.92 : ((level + 0.055) / 1.055) ** 2.4;
  const colour = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([red, green, blue]) =>
    0.2126 * linear(red / 255) + 0.7152 * linear(green / 255) + 0.0722 * linear(blue / 255);
  const background = element => {
    const found = colour(getComputedStyle(element).backgroundColor);
    return found.length === 3 ? found : background(element.parentElement);
  };
  const shown = document.querySelectorAll(
    "h1, .verdict, .failed-text, .remark, .differs, mark, thead th, td, figcaption, label, output");
  return [...shown].filter(element => element.checkVisibility()).map(element => {
    const ink = luminance(colour(getComputedStyle(element).color));
    const paper = luminance(background(element));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    return [element.className || element.tagName, ratio];
  });
}"""
"""WCAG 2.2's contrast of words with what they stand on. Source: w3.org/TR/WCAG22, relative
luminance and contrast ratio."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield found
        found.close()


@pytest.fixture(scope="module")
def page_file(
    parity_report: ParityReport,
    report_pictures: Mapping[str, Mapping[int, ImagePixels]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(report_page(parity_report, pictures=report_pictures), encoding="utf-8")
    return file


class Opened:
    """The page in a window, and everything that the browser complained about."""

    def __init__(
        self,
        browser: Browser,
        file: Path,
        *,
        width_px: int = 1280,
        scheme: ColorScheme = "light",
        scripts: bool = True,
    ) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(
            viewport={"width": width_px, "height": 900},
            color_scheme=scheme,
            java_script_enabled=scripts,
            has_touch=True,
        )
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def shown_steps(self) -> list[str | None]:
        steps = self.page.locator(".step").all()
        return [step.get_attribute("data-step") for step in steps if step.is_visible()]


def mean_colour(picture: Locator) -> Array:
    """Of its middle, as it is seen: levels of red, green and blue."""
    seen = np.asarray(Image.open(io.BytesIO(picture.screenshot())).convert("RGB"))
    height, width = seen.shape[0] // 4, seen.shape[1] // 4
    mean: Array = seen[height:-height, width:-width].mean(axis=(0, 1))
    return mean


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width_px", [390, 1280])
def test_it_opens_in_silence_and_fits(
    browser: Browser, page_file: Path, width_px: int, scheme: ColorScheme
) -> None:
    opened = Opened(browser, page_file, width_px=width_px, scheme=scheme)
    for details in opened.page.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    size = opened.page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert size == [width_px, width_px]
    pictures = opened.page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert pictures
    assert all(natural_width > 0 for natural_width in pictures)
    assert opened.complaints == []
    assert opened.requests[0] == page_file.as_uri()
    assert all(url.startswith("data:") for url in opened.requests[1:])
    opened.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read(browser: Browser, page_file: Path, scheme: ColorScheme) -> None:
    opened = Opened(browser, page_file, scheme=scheme)
    found = opened.page.evaluate(CONTRAST)
    kinds = {kind for kind, _ in found}
    assert {"verdict passed", "verdict failed", "verdict not_run", "H1", "MARK"} <= kinds
    assert [(kind, ratio) for kind, ratio in found if not ratio >= 4.5] == []
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    opened.page.close()


def test_the_slider_of_steps_works_by_keyboard(browser: Browser, page_file: Path) -> None:
    opened = Opened(browser, page_file)
    slider = opened.page.get_by_label("Step", exact=True)
    assert opened.shown_steps() == ["8"]
    slider.focus()
    opened.page.keyboard.press("ArrowLeft")
    assert opened.shown_steps() == ["7"]
    assert opened.page.locator("#step-shown").inner_text() == "7 of 8"
    assert slider.get_attribute("aria-valuetext") == "step 7"
    opened.page.keyboard.press("Home")
    assert opened.shown_steps() == ["1"]
    opened.page.close()


def test_the_slider_of_steps_works_by_mouse_and_touch(browser: Browser, page_file: Path) -> None:
    opened = Opened(browser, page_file, width_px=390)
    slider = opened.page.get_by_label("Step", exact=True)
    box = slider.bounding_box()
    assert box is not None
    slider.click(position={"x": 3, "y": box["height"] / 2})
    assert opened.shown_steps() == ["1"]
    slider.tap(position={"x": box["width"] - 3, "y": box["height"] / 2})
    assert opened.shown_steps() == ["8"]
    opened.page.close()


def test_the_wipe_lays_the_reference_over_the_candidates(browser: Browser, page_file: Path) -> None:
    opened = Opened(browser, page_file)
    step = opened.page.locator(".step:visible")
    reference = step.locator(".column").first.locator(".frame")
    candidate = step.locator(".column", has_text="openvino").locator(".frame").first
    colours = mean_colour(reference), mean_colour(candidate)
    assert max(abs(colours[0] - colours[1])) > 10
    slider = opened.page.get_by_label("Wipe to the reference")
    slider.focus()
    opened.page.keyboard.press("End")
    assert opened.page.locator("#wipe-share").inner_text() == "100 %"
    assert mean_colour(candidate) == pytest.approx(colours[0], abs=1)
    opened.page.keyboard.press("Home")
    assert mean_colour(candidate) == pytest.approx(colours[1], abs=1)
    opened.page.close()


def test_without_scripts_every_step_is_shown_and_no_slider(
    browser: Browser, page_file: Path
) -> None:
    opened = Opened(browser, page_file, scripts=False)
    assert opened.shown_steps() == [str(step) for step in range(1, 9)]
    assert not opened.page.locator(".controls").is_visible()
    opened.page.close()
