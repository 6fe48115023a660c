"""The pages of the repository make a site without a dead link."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def built(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--config-file",
        str(root / "tools/site/mkdocs.yml"),
        "--site-dir",
        str(site),
    ]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def copy_of_the_pages(tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("docs", "tools/site"):
        shutil.copytree(ROOT / name, copy / name)
    for name in ("benchmarks", "charts", "changelog.d", "crds", "examples", "operator", "sidecar", "tests"):
        (copy / name).symlink_to(ROOT / name)
    return copy


def test_the_site_builds_without_a_warning_and_asks_no_other_server(tmp_path: Path) -> None:
    made = built(ROOT, tmp_path / "site")
    assert made.returncode == 0, made.stderr
    page = (tmp_path / "site/index.html").read_text()
    assert "Find your way" in page
    assert 'src="http' not in page
    assert "Checkpointer" in (tmp_path / "site/reference.html").read_text()


def test_a_link_to_a_missing_page_or_file_fails_the_build(tmp_path: Path) -> None:
    copy = copy_of_the_pages(tmp_path)
    page = copy / "docs/recipes.md"
    page.write_text(page.read_text() + "\n[gone](../tests/gone.py) and [missing](recipes.md#no-such-heading)\n")
    made = built(copy, tmp_path / "site")
    assert made.returncode != 0
    assert "tests/gone.py" in made.stderr
    assert "no-such-heading" in made.stderr
