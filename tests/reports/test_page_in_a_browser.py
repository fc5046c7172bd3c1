"""The page as people see it, in a real browser: at no width anything is cut off, and nothing is fetched."""

from pathlib import Path

import pytest

from reports.page import report_on, write_report
from tests.reports.test_page import simulate
from tests.support import chromium

pytestmark = pytest.mark.skipif(not chromium.BINARY, reason="needs Chromium: apt-get install chromium")
# Texts of figures that stick out of their figure, by a pixel or more.
CLIPPED = """
[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
      || box.bottom > frame.bottom + 1;
  }).map(text => svg.getAttribute('aria-label') + ': ' + text.textContent);
})
"""
SMALLEST_TEXT_PX = (
    "Math.min(...[...document.querySelectorAll('figure text')].map(t => t.getBoundingClientRect().height))"
)


@pytest.fixture
def pages(tmp_path: Path) -> dict[str, Path]:
    runs = [simulate(tmp_path / f"run-{seed}", seed) for seed in (42, 43)]
    folders = {"run": runs[:1], "comparison": runs}
    return {name: write_report(report_on(those)[1], tmp_path / name) for name, those in folders.items()}


async def test_nothing_is_cut_off_at_any_width(pages: dict[str, Path], tmp_path: Path) -> None:
    for name, page in pages.items():
        async with chromium.tab(tmp_path / f"profile-{name}") as tab:
            await tab.size(1280, 900)
            await tab.go(page.as_uri())
            await tab.until("document.readyState === 'complete' && document.querySelectorAll('figure').length > 5")
            for width, dark in ((1280, False), (1280, True), (768, False), (390, False), (390, True)):
                await tab.size(width, 844, mobile=width < 500, dark=dark)
                await tab.until("document.documentElement.scrollWidth <= innerWidth", timeout_s=5)
                assert await tab.value(CLIPPED) == [], f"{name} at {width}"
                assert await tab.value(SMALLEST_TEXT_PX) > 6
            assert await tab.value("performance.getEntriesByType('resource').length") == 0
            assert await tab.value("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)", "dark"
            assert tab.errors == []
