"""What mkdocs adds to docs/: pages made from the code, and texts of the repository that lie elsewhere."""

import re
from pathlib import Path

import gallery
import scenario_keys
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url
from typer.cli import get_docs_for_click

from cluster.cli.app import app

ROOT = Path(__file__).parents[2]
# Texts of the repository that are pages of the site, and what links to them say.
OUTSIDE = {"../models/family/card.md": "reference/family.md", "../CHANGELOG.md": "reference/changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    pages: dict[str, str | bytes] = {
        "reference/keys.md": scenario_keys.page(),
        "reference/commands.md": _commands(),
        **gallery.pages(),
    }
    for link, name in OUTSIDE.items():
        pages[name] = (ROOT / "docs" / link).resolve().read_text(encoding="utf-8")
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links out of docs/ to the pages made of what is there."""
    for link, name in OUTSIDE.items():
        markdown = markdown.replace(f"]({link}", f"]({name}")
    return markdown.replace("](example/report.md)", "](example/report.html)")  # the same, as a page


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Search fetches a script from the network, unless it is told of the copy here."""
    here = get_relative_url("assets/iframe-worker.js", page.url)
    return output.replace("https://unpkg.com/iframe-worker/shim", here)


def _commands() -> str:
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="scout")
    text = get_docs_for_click(obj=command, ctx=context, name="scout", title="Commands")
    return re.sub(r" *\[(default: [^\]]*|required)\]", r" (\1)", text)
