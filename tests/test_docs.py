"""The documents: every link, file, test and command that they name exists, and the README stays short."""

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from finetune.__main__ import COMMANDS
from tests.conftest import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
FOLDERS = "benchmarks|components|configs|docs|environments|examples|src|tests|tools"
PATH = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\w")
TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
MODULE = re.compile(r"python -m ((?:finetune|tests|tools)[\w.]*)")
COMMAND = re.compile(r"(?<![\w./-])finetune ([a-z_]+)(?= [a-z-]|`)")


def anchor(heading: str) -> str:
    """Return what GitHub calls a heading in a link."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {anchor(line.lstrip("#")) for line in page.read_text("utf-8").splitlines() if line.startswith("#")}


def broken_links(page: Path) -> Iterator[str]:
    for target in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, part = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (part and part not in anchors(file)):
            yield target


def missing_names(page: Path) -> Iterator[str]:
    """The files, tests, modules and commands that the page names and that don't exist."""
    text = page.read_text("utf-8")
    yield from (path for path in PATH.findall(text) if not (ROOT / path).exists())
    for file, test in TEST.findall(text):
        if f"def {test}(" not in (ROOT / file).read_text("utf-8"):
            yield f"{file}::{test}"
    yield from (module for module in MODULE.findall(text) if find_spec(module) is None)
    for code in CODE.findall(text):
        yield from (f"finetune {name}" for name in COMMAND.findall(f"{code}`") if name not in COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    assert not list(broken_links(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names(page: Path) -> None:
    assert not list(missing_names(page))


def table_after(text: str, before: str) -> list[list[str]]:
    """The cells of the table after some text, row by row, without its head."""
    lines = text.partition(before)[2].partition("\n| --- |")[2].splitlines()[1:]
    rows = lines[: next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_every_command_of_the_way_to_an_endpoint_says_where_it_was_run() -> None:
    text = (ROOT / "docs" / "azure.md").read_text("utf-8")
    table = table_after(text, "# On Azure ML")
    assert all(re.match("stand-in|here|not tried", where) for _, _, where in table)
    way = text.partition("\n### ")[0]
    typed = re.findall(r"^(az(?: [a-z][a-z-]*)+|finetune [a-z]+|pip install)", way, re.MULTILINE)
    assert len(typed) >= 8 and not [command for command in typed if not any(command in row[1] for row in table)]


def test_what_can_stop_a_user_of_the_public_examples_has_a_test() -> None:
    table = table_after((ROOT / "docs" / "azure.md").read_text("utf-8"), "What can stop such a user")
    assert len(table) == 10
    assert not [row[0] for row in table if not TEST.search(row[2]) and row[2] != "not tried"]


def test_there_are_pages() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "design.md", "status.md"} < {page.name for page in PAGES}


def test_readme_is_read_at_once() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 110


def test_rooms_are_those_of_the_import_contract() -> None:
    """docs/design.md has a row for each room of the package, and no other."""
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"][0][
        "layers"
    ]
    rooms = {name.strip() for layer in layers[1:] for name in re.split(r"[|:]", layer)}
    rows = re.findall(r"^\| `(\w+)/` \|", (ROOT / "docs" / "design.md").read_text("utf-8"), re.MULTILINE)
    assert set(rows) == rooms


def test_a_folder_of_the_package_has_at_most_twelve_files() -> None:
    """Rooms that are seen at a glance; the entry points are counted too."""
    files = [path for path in (ROOT / "src" / "finetune").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {folder: n for folder, n in Counter(path.parent for path in files).items() if n > 12} == {}
