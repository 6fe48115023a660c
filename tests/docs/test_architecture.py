"""The pages about the code name rooms and modules that exist, every decision is listed, and class names are unique."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LIBRARY = REPOSITORY / "sidecar" / "checkpoint_sidecar"
OPERATOR = REPOSITORY / "operator" / "checkpoint_operator"
PAGE = (REPOSITORY / "docs" / "architecture.md").read_text()
DECISIONS = REPOSITORY / "docs" / "decisions"
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "changelog.d/*.md")
    for path in REPOSITORY.glob(pattern)
)


def rooms(package: Path) -> set[str]:
    """The folders of a package that hold modules."""
    return {path.parent.name for path in package.glob("*/__init__.py")}


ROOMS = rooms(LIBRARY) | rooms(OPERATOR)


def drawn(heading: str) -> list[str]:
    """The rooms in the drawing below a heading, from the top: the first word of each line that begins with one."""
    drawing = PAGE.partition(heading)[2].partition("```text\n")[2].partition("```")[0]
    return re.findall(r"^[ │├└─]*(\w+) {2,}\S", drawing, re.MULTILINE)


def layered() -> list[list[list[str]]]:
    """The layers of each contract of that type, from the top; rooms side by side are in one list."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]
    return [
        [[room.strip().rpartition(".")[2] for room in re.split("[:|]", layer)] for layer in contract["layers"]]
        for contract in settings["contracts"]
        if contract["type"] == "layers"
    ]


def flat(layers: list[list[str]]) -> list[str]:
    return [room for layer in layers for room in layer]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as hosting services derive them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", title).lower()).replace(" ", "-")
        for title in titles
    }


def exists(name: str) -> bool:
    """Whether `room/module` or `room.module.Name` is found in a package."""
    first, *rest = re.split(r"[./]", name.removesuffix(".py"))
    for package in (LIBRARY, OPERATOR):
        place, left = package / first, list(rest)
        while left and (place / left[0]).is_dir():
            place /= left.pop(0)
        if not left:
            if place.is_dir():
                return True
        elif (module := place / f"{left[0]}.py").exists():
            source = module.read_text()
            return all(re.search(rf"^\s*(?:class|def|async def) {each}\b", source, re.MULTILINE) for each in left[1:])
    return False


@pytest.mark.parametrize(
    ("heading", "package"),
    [
        pytest.param("### The library, `sidecar/checkpoint_sidecar`", LIBRARY, id="library"),
        pytest.param("### The operator, `operator/checkpoint_operator`", OPERATOR, id="operator"),
    ],
)
def test_every_room_is_drawn_at_its_layer_and_no_other(heading: str, package: Path) -> None:
    (layers,) = (each for each in layered() if set(flat(each)) == rooms(package))
    found = drawn(heading)
    assert sorted(found) == sorted(rooms(package))
    for above, below in pairwise(layers):
        assert max(map(found.index, above)) < min(map(found.index, below)), f"{above} stand above {below}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != "CHANGELOG.md" and not page.startswith("changelog.d/")]
)
def test_every_module_that_a_page_names_exists(page: str) -> None:
    about_code = page == "docs/architecture.md" or page.startswith("docs/decisions/")
    ending = "" if about_code else r"\.py"  # elsewhere `training/llama` may be a bucket's
    room = f"(?:{'|'.join(sorted(ROOMS))})"
    pattern = rf"(?<![\w/.-])(?:checkpoint_(?:sidecar|operator)[./])?({room}[./]\w[\w./]*\w{ending})\b"
    named = re.findall(pattern, (REPOSITORY / page).read_text())
    assert [name for name in dict.fromkeys(named) if not exists(name)] == []
    assert named or page != "docs/architecture.md"


def test_the_five_paths_pass_through_modules() -> None:
    paths = PAGE.partition("## Five paths")[2].partition("\n## ")[0].split("\n### ")[1:]
    assert len(paths) == 5
    for path in paths:
        stations = re.findall(rf"^ ((?:{'|'.join(ROOMS)})/[\w/]+) ", path, re.MULTILINE)
        assert len(stations) >= 5, path.splitlines()[0]


def test_every_decision_is_listed_with_its_title() -> None:
    listed = dict(
        re.findall(r"^\| \[\d{4}\]\((\S+)\) \| (.+) \|$", (DECISIONS / "README.md").read_text(), re.MULTILINE)
    )
    titles = {
        page.name: page.read_text().splitlines()[0].partition(": ")[2] for page in sorted(DECISIONS.glob("0*.md"))
    }
    assert listed == titles
    assert [
        name for name, number in zip(titles, range(1, 100), strict=False) if not name.startswith(f"{number:04}-")
    ] == []


def test_every_decision_says_context_reason_and_consequences() -> None:
    parts = ("**Context.**", "**Decision.**", "**Why.**", "**Consequences.**")
    texts = {page.name: page.read_text() for page in DECISIONS.glob("0*.md")}
    assert [name for name, text in texts.items() if not all(part in text for part in parts)] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_exist(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    missing = []
    for link in re.findall(
        r"\]\((?!https?:)([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    ):
        name, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / name if name else REPOSITORY / page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


def test_every_word_of_the_glossary_is_defined_once_in_one_sentence() -> None:
    found = re.findall(
        r"^\| \*\*([^*]+)\*\*[^|]* \| (.+) \|$", (REPOSITORY / "docs" / "glossary.md").read_text(), re.MULTILINE
    )
    words = [word for word, _ in found]
    assert len(words) > 50
    assert sorted(words) == sorted(set(words))
    assert [word for word, meaning in found if not meaning.endswith(".")] == []


def test_a_class_name_means_one_thing_in_both_packages() -> None:
    """Private names, too: a reader who searches for a name finds one class."""
    places = defaultdict(list)
    for package in (LIBRARY, OPERATOR):
        for module in sorted(package.rglob("*.py")):
            for node in ast.walk(ast.parse(module.read_text())):
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(f"{module.relative_to(package.parent)}:{node.lineno}")
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
