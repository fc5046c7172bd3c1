"""The documentation as a site: it builds without a warning, is whole, fetches nothing, and works from files."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.cli.app import BENCHES, COMMANDS
from cluster.scenario.json_schema import scenario_schema
from cluster.scenario.shipped import scenarios
from tests.support import chromium
from tests.support.commands import REPOSITORY

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("mkdocs"), reason="needs mkdocs: pip install 'scout-emulator[dev]'"
)
# Of a page: elements that stick out on the right, where nothing scrolls them.
CUT_OFF = """
[...document.querySelectorAll('.md-content *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1
    && !e.closest('.md-typeset__scrollwrap, pre, .md-typeset__table, .highlight, .md-source-file, details:not([open])');
}).map(e => e.outerHTML.slice(0, 120))
"""
HITS = "[...document.querySelectorAll('.md-search-result__item')].map(e => e.textContent).join('')"


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(site),
    ]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=170)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(REPOSITORY / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_references_are_whole(site: Path) -> None:
    schema = scenario_schema()
    keys = {key for part in (schema, *schema["$defs"].values()) for key in part.get("properties", {})} - {"kind"}
    page = text_of(site / "reference" / "keys.html")
    assert [key for key in keys if f"<code>{key}</code>" not in page] == []
    commands = [f"scout {command.__name__}" for command in COMMANDS]
    commands += [f"scout bench {command.__name__}" for command in BENCHES]
    page = text_of(site / "reference" / "commands.html")
    assert [name for name in commands if name not in page] == []
    page = text_of(site / "gallery.html")
    for name in scenarios():
        assert f"gallery/{name}.png" in page
        assert (site / "gallery" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    fetched = re.compile(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?(?:https?:)?//[^\s\"'>]*|@import[^;]*//")
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    assert len(pages) > 15
    assert [(page.name, found) for page in pages for found in fetched.findall(text_of(page))] == []


def test_a_dead_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    index = tmp_path / "docs" / "index.md"
    config = {"INHERIT": str(REPOSITORY / "mkdocs.yml"), "docs_dir": "docs", "hooks": [], "nav": ["index.md"]}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    for text, code in (("[here](index.md#here)\n\n# Here\n", 0), ("[gone](gone.md)", 1), ("[x](index.md#gone)", 1)):
        index.write_text(text)
        done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
        assert done.returncode == code, done.stderr


@pytest.mark.skipif(not chromium.BINARY, reason="needs Chromium: apt-get install chromium")
async def test_pages_and_search_work_from_files(site: Path, tmp_path: Path) -> None:
    async with chromium.tab(tmp_path / "profile") as tab:
        for name in ("index", "gallery", "reference/keys", "reference/python", "links"):
            for width in (1280, 390):
                await tab.size(width, 844, mobile=width < 500)
                await tab.go((site / f"{name}.html").as_uri())
                await tab.until(
                    "document.readyState === 'complete' && document.querySelector('.md-content h1') !== null"
                )
                await tab.until("document.documentElement.scrollWidth <= innerWidth", timeout_s=5)
                assert await tab.value(CUT_OFF) == [], f"{name} at {width}"
        await tab.until("document.querySelector('.md-search__input') !== null")
        await tab.value("document.querySelector('label[for=__search]').click()")
        await tab.value("document.querySelector('.md-search__input').focus()")
        await tab.call("Input.insertText", text="backlog_limit")
        await tab.until(f"({HITS}).includes('backlog_limit')")
        assert tab.errors == []
