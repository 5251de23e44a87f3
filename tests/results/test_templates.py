"""What users call things is shown as it is in the card and in the report, and is never Markdown, HTML or a formula."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markupsafe import Markup

from finetune.data.folders import SplitReport, Trained
from finetune.results import card, charts, report
from finetune.results.report import Findings
from finetune.results.templates import markdown
from finetune.tasks import load_task
from finetune.tasks.task import Breakdown, State
from tests.results.test_report import TRAINED, Page, examined

OWNED = "document.title='owned';document.documentElement.dataset.owned=1"
NAMES = (
    f"<script>{OWNED}</script>",
    f"<img src=x onerror={OWNED}>",
    f'"><svg onload="{OWNED}">',
    f"[click](javascript:{OWNED})",
    f"<a href=javascript:{OWNED}>x</a>",
    "PER\n# Heading",
    "B|C",
    "``` `tick` ~~~",
    "---",
    "\n---\nlicense: mit\n---\n",
    "a: b & 'c' \"d\" !!python/name:os.system {{ 7 * 7 }} ${{ x }} $x^2$ \\",
    "1. one",
    "- *two* __three__ _four_",
    "    indented",
    "http://example.org www.example.org a@example.org",
    "</style></title></textarea>--><b>",
    "Zürich 東京 \u2028 \x85 \u202e",
)
HOSTILE = " ".join(NAMES)
OF_A_PAGE = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "header",
    "article",
    "figure",
    "blockquote",
    "mark",
    "span",
}
OF_A_DRAWING = {"svg", "metadata", "rdf:rdf", "cc:work", "defs", "g", "path", "text", "use", "clippath", "rect"}
OF_A_REPORT = {
    *OF_A_PAGE,
    *OF_A_DRAWING,
    "p",
    "h1",
    "h2",
    "h3",
    "div",
    "b",
    "i",
    "dl",
    "dt",
    "dd",
    "table",
    "tr",
    "th",
    "td",
}
OF_A_CARD = {"h1", "h2", "p", "pre", "code", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}


def hostile_record() -> Trained:
    problems = {name: {"count": 2, "action": "dropped", "rows": [3, 4]} for name in NAMES}
    return replace(
        TRAINED,
        base_model=HOSTILE.replace("/", "∕"),
        splits={**TRAINED.splits, "train": SplitReport(9, 0, 7, 11, problems)},
        parameters={"learning_rate": 3e-4, "note": HOSTILE},
    )


def hostile_state() -> State:
    values = {"max_seq_length": 384, "doc_stride": 128, "pad_to_max_length": False, "scheme": "", "strangers": []}
    return load_task("token_classification").state(labels=list(NAMES), wordless=HOSTILE, **values)


def hostile_card(folder: Path) -> str:
    task = load_task("token_classification")
    values = {"max_seq_length": 384, "doc_stride": 128, "pad_to_max_length": False, "scheme": "", "strangers": []}
    card.write(
        folder, task, task.state(labels=list(NAMES), wordless=HOSTILE, **values), hostile_record(), unmerged=True
    )
    return (folder / "README.md").read_text(encoding="utf-8")


def as_html(text: str) -> str:
    """The card as model hubs show it: tables, and the HTML that is in it."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)


def hostile_report(folder: Path) -> str:
    task = load_task("token_classification")
    findings = Findings()
    for i, name in enumerate(NAMES):
        marks = ((0, len(name), "gold"), (1, 3, "predicted"))
        row = {"text": name, "marks": marks, "predicted": name, "gold": (name, HOSTILE), "group": name, "title": name}
        findings.add(examined(i, id=name, **row))
    metrics = {"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 0.5}
    scores = {**metrics, **{f"{name}_{metric}": 0.5 for name in NAMES for metric in metrics}}
    rows = Breakdown(
        {name: {**metrics, "words": 3} for name in NAMES}, {name: dict.fromkeys(NAMES, 1) for name in NAMES}
    )
    facts = {
        "device": HOSTILE,
        "seconds": 1.0,
        "rows_per_second": 8.0,
        "problems": hostile_record().splits["train"].problems,
    }
    page = folder / "report.html"
    report.write(
        page, task, HOSTILE, findings, scores, rows, facts, hostile_state(), {"tags_key": HOSTILE}, hostile_record()
    )
    return page.read_text(encoding="utf-8")


def assert_nothing_runs(page: Page, known: set[str]) -> None:
    assert {tag for tag, _ in page.tags} <= known
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("href", "src", "xlink:href", "action", "srcdoc"):
            assert (attributes.get(name) or "#").startswith("#"), tag


def test_card_shows_hostile_names_as_text(tmp_path: Path) -> None:
    text = hostile_card(tmp_path)
    page = Page(as_html(ModelCard.load(tmp_path / "README.md").text))
    assert_nothing_runs(page, OF_A_CARD)
    (heading,) = page.within("h1")
    assert heading == f"{hostile_record().base_model}-token-classification"
    assert page.within("h2") == ["Use", "Data", "Validation", "Training", "Limits", "Licence"]
    assert HOSTILE in page.within("td")
    items = "\n".join(page.within("li"))
    assert all(f"train: dropped 2: {name} (rows 3, 4)" in items for name in NAMES)
    assert f"It knows {len(NAMES)} tags: {', '.join(NAMES)}." in items
    assert text.count("\n---\n") == 1  # the end of the metadata


def test_ordinary_names_stand_in_the_card_as_they_are() -> None:
    for name in (
        "B-PER",
        "bert-base_uncased.v2",
        "learning_rate",
        "0.0003",
        "-2.5",
        "true",
        "C++",
        "it's 50 %, (or so)",
    ):
        assert markdown(name) == name
    assert markdown(Markup("`ours`")) == "`ours`"


def test_report_shows_hostile_names_as_text(tmp_path: Path) -> None:
    page = Page(hostile_report(tmp_path))
    assert_nothing_runs(page, OF_A_REPORT)
    assert page.within("title") == [f"Token Classification: {HOSTILE}"] and page.within("h1") == [HOSTILE]
    cells = "\n".join(page.within("td"))
    assert all(name in cells for name in NAMES)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\n\r\t")) | st.sampled_from(NAMES))
@example("#\n# x\n\n    code\n\n<b>\n| a |\n| - |\n")
@example("12) x")
@example("\u3000a\xa0")
def test_any_text_is_shown_as_it_is(text: str) -> None:
    escaped = markdown(text)
    assert "\n" not in escaped
    places = {f"{escaped}": "p", f"# {escaped}": "h1", f"- {escaped}": "li", f"|a|b|\n|-|-|\n|{escaped}|c|": "td"}
    for source, tag in places.items():
        page = Page(as_html(source))
        assert {found for found, _ in page.tags} <= {"p", "h1", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
        shown = "".join(page.within(tag))
        assert (shown.removesuffix("c") if tag == "td" else shown.strip("\n") if tag == "li" else shown) in (
            text,
            text.strip("\n"),
        )


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.sampled_from(NAMES))
@example("a\x85b")
@example("\x85\u2028\ufeff\x07\0: &'\"!!python/name:os.system")
def test_metadata_reads_back_as_it_was(name: str) -> None:
    trained = replace(TRAINED, source="huggingface_id", base_model=f"x{name}")
    data = card.metadata(name, load_task("question_answering"), trained, unmerged=False)
    text = card.front_matter(data)
    assert yaml.safe_load(text) == data.to_dict()
    read = ModelCard(f"---\n{text}\n---\n\nText.").data
    assert (read.model_name, read.base_model) == (name, f"x{name}")


def test_charts_show_a_dollar_as_a_dollar() -> None:
    drawn = charts.curves({"$x^2$ <b>": [(1, 1), (2, 2)]}, 1)
    assert ">$x^2$ &lt;b&gt;</text>" in drawn


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["card", "report"])
def test_a_browser_runs_nothing(kind: str, tmp_path: Path) -> None:
    browser = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if browser is None:
        pytest.skip("there is no Chromium to look with")
    bare = tmp_path / "bare.html"
    bare.write_text(f"<title>mine</title><body>{HOSTILE}", encoding="utf-8")
    page = tmp_path / "page.html"
    if kind == "card":
        hostile_card(tmp_path)
        html = as_html(ModelCard.load(tmp_path / "README.md").text)
        page.write_text(f"<!DOCTYPE html><meta charset=utf-8><title>mine</title>{html}", encoding="utf-8")
    else:
        page.write_text(hostile_report(tmp_path), encoding="utf-8")
    seen = {path: dom_of(path, browser, tmp_path) for path in (bare, page)}
    assert "data-owned" in seen[bare]  # these names do run where nothing escapes them
    assert "data-owned" not in seen[page] and "<title>owned" not in seen[page]


def dom_of(page: Path, browser: str, folder: Path) -> str:
    """The page as it is once a browser has loaded it and run what there was to run."""
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    words += ["--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=90).stdout
