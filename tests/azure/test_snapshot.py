"""The copy of a component's code."""

from pathlib import Path

import pytest

from finetune.azure.snapshot import collect, copy, digest, tree
from finetune.core.errors import ParameterError
from tests.conftest import ROOT


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def build(code: Path, includes: list[Path], into: Path) -> Path:
    """The snapshot, in a folder with the name of its digest."""
    files = collect([code], includes)
    copy(files, into / digest(files))
    return into / digest(files)


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text(encoding="utf-8") for p in folder.rglob("*") if p.is_file()}


def test_nested_folders_are_copied(tmp_path: Path) -> None:
    files = {"run.py": "1", "package/__init__.py": "", "package/deep/er/x.txt": "süß\n"}
    target = build(write(tmp_path / "code", files), [], tmp_path / "into")
    assert target.parent == tmp_path / "into"
    assert contents(target) == files


def test_includes_lie_beside_the_code(tmp_path: Path) -> None:
    code = write(tmp_path / "code", {"run.py": "1"})
    write(tmp_path / "other", {"configs/a.json": "{}", "configs/deep/b.json": "[]", "one.txt": "one"})
    target = build(code, [tmp_path / "other" / "configs", tmp_path / "other" / "one.txt"], tmp_path / "into")
    assert contents(target) == {"run.py": "1", "configs/a.json": "{}", "configs/deep/b.json": "[]", "one.txt": "one"}


def test_the_name_depends_on_the_content_alone(tmp_path: Path) -> None:
    files = {"run.py": "1", "b/c.py": "2"}
    names = {build(write(tmp_path / place, files), [], tmp_path / "into").name for place in ("here", "there", "here")}
    assert len(names) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"run.py": "2", "b/c.py": "2"},
        {"go.py": "1", "b/c.py": "2"},
        {"run.py": "1", "c.py": "2"},
        {"run.py": "1"},
        {"run.py": "1", "b/c.py": "2", "empty.py": ""},
    ],
    ids=["content", "name", "folder", "removed", "added"],
)
def test_another_content_has_another_name(tmp_path: Path, other: dict[str, str]) -> None:
    first = build(write(tmp_path / "one", {"run.py": "1", "b/c.py": "2"}), [], tmp_path / "into")
    second = build(write(tmp_path / "two", other), [], tmp_path / "into")
    assert first != second
    assert contents(first) == {"run.py": "1", "b/c.py": "2"}
    assert contents(second) == other


def test_an_include_changes_the_name(tmp_path: Path) -> None:
    code, include = write(tmp_path / "code", {"run.py": "1"}), tmp_path / "configs"
    names = [build(code, [write(include, {"a.json": text})], tmp_path / "into").name for text in ("{}", "[]")]
    assert names[0] != names[1]


@pytest.mark.parametrize(
    ("listing", "left_out"),
    [
        ("", set()),
        ("#run.py\n\n", set()),
        ("notes.md\n", {"notes.md", "deep/notes.md"}),
        ("*.log\n", {"a.log", "deep/cache/b.log"}),
        ("cache/\n", {"deep/cache/b.log", "deep/cache/c.py"}),
        ("deep\n*.md\n", {"deep/notes.md", "deep/cache/b.log", "deep/cache/c.py", "notes.md"}),
    ],
    ids=["empty", "comment", "name", "suffix", "folder", "two lines"],
)
def test_amlignore(tmp_path: Path, listing: str, left_out: set[str]) -> None:
    names = ["run.py", "#run.py", "a.log", "notes.md", "deep/notes.md", "deep/cache/b.log", "deep/cache/c.py"]
    code = write(tmp_path / "code", {**dict.fromkeys(names, "text"), ".amlignore": listing})
    assert set(contents(build(code, [], tmp_path / "into"))) - {".amlignore"} == set(names) - left_out


@pytest.mark.parametrize("pattern", ["data/*.csv", "/data", "!data.txt"])
def test_amlignore_patterns_that_are_more_than_a_name_are_refused(tmp_path: Path, pattern: str) -> None:
    code = write(tmp_path / "code", {"run.py": "", ".amlignore": f"*.txt\n{pattern}\n"})
    with pytest.raises(ParameterError, match="is not understood"):
        collect([code], [])


def test_missing_folders_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(ParameterError) as caught:
        collect([tmp_path / "code"], [tmp_path / "configs"])
    assert [fault.what for fault in caught.value.faults] == [
        f"{tmp_path / name} is missing" for name in ("code", "configs")
    ]


def test_a_file_that_is_left_out_does_not_change_the_name(tmp_path: Path) -> None:
    code = write(tmp_path / "code", {"run.py": "1", "a.log": "one", ".amlignore": "*.log\n"})
    before = build(code, [], tmp_path / "into")
    assert build(write(code, {"a.log": "two"}), [], tmp_path / "into") == before


def test_a_copy_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    code = write(tmp_path / "code", {"run.py": "print('whole')"})
    target = build(code, [], tmp_path / "into")
    write(target, {"run.py": "print("})
    assert contents(build(code, [], tmp_path / "into")) == {"run.py": "print('whole')"}


def test_the_project_s_own_code(tmp_path: Path) -> None:
    found = contents(build(ROOT / "src", [ROOT / "configs"], tmp_path))
    for folder, top in ((ROOT / "src" / "finetune", "finetune"), (ROOT / "configs", "configs")):
        wanted = {f"{top}/{p.relative_to(folder)}" for s in ("py", "json", "j2") for p in folder.rglob(f"*.{s}")}
        assert wanted
        assert wanted <= set(found)
    assert not [name for name in found if "__pycache__" in name or "egg-info" in name]


def test_a_whole_disk_is_no_input() -> None:
    with pytest.raises(ParameterError, match="/ is the root of a disk"):
        tree(Path("/"))
