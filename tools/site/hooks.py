"""Turns the pages of the repository into pages of the site, for MkDocs.

In the repository, pages link to code beside them (``../tests/core/test_log.py``). The site has only pages: there, such
a link becomes a link into the hosted repository if ``REPOSITORY_URL`` names one, and plain text otherwise. A link to a
file that does not exist fails the build.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import checkpoint_sidecar

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY_URL = os.environ.get("REPOSITORY_URL", "").rstrip("/")

PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages outside of docs/, and their names in the site."""

_LINK = re.compile(r"(!?)\[((?:[^\]\[]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_logger = logging.getLogger("mkdocs.hooks.site")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "reference.md", content=_reference()))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Let links point to pages of the site, or into the hosted repository."""
    sources = {name: source for source, name in PAGES.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    blocks = re.split(r"(^```.*?^```\n)", markdown, flags=re.MULTILINE | re.DOTALL)
    blocks[::2] = (_LINK.sub(lambda link: _linked(link, source, page), text) for text in blocks[::2])
    return "".join(blocks)


def _linked(link: re.Match[str], source: str, page: Page) -> str:
    image, text, target = link.groups()
    path, _, anchor = target.partition("#")
    if not path or "://" in path or path.startswith("mailto:"):
        return link[0]
    found = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not (ROOT / found).exists():
        _logger.warning("%s links to %s, which does not exist", source, target)
        return link[0]
    here = posixpath.dirname(page.file.src_uri)
    if found in PAGES or found.startswith("docs/"):
        name = PAGES.get(found, found.removeprefix("docs/"))
        return f"{image}[{text}]({posixpath.relpath(name, here or '.')}{'#' + anchor if anchor else ''})"
    if not REPOSITORY_URL:
        return text
    return f"{image}[{text}]({REPOSITORY_URL}/blob/main/{found}{'#' + anchor if anchor else ''})"


def _reference() -> str:
    """Write the page of the Python interface; mkdocstrings fills it from the docstrings."""
    # The package's own table, which names modules without importing torch; the rest of __all__ are errors.
    modules = checkpoint_sidecar._LAZY | {"Owner": "core.owner", "SavePolicy": "core.policy"}
    names = "\n\n".join(f"::: checkpoint_sidecar.{module}.{name}" for name, module in sorted(modules.items()))
    opening = "# Python\n\nEverything below is imported from `checkpoint_sidecar`."
    return f"{opening}\n\n{names}\n\n::: checkpoint_sidecar.core.errors\n"
