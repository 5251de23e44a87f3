"""report.html: what it says is what was measured, and it can be read alone, by anyone, whatever the rows hold."""

import itertools
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune import evaluation
from finetune.data.folders import SplitReport, Trained
from finetune.results.report import MOST_CLASSES, WORST, Cell, Findings, calibration, confusion, cut_outs, shares
from finetune.tasks.task import Breakdown, Examined
from tests.conftest import sample_rows, write_jsonl

VOID = {"meta", "br", "img", "link", "input", "hr"}
TRAINED = Trained(
    task="question_answering",
    base_model="/somewhere/of/mine/base",
    source="pytorch_model_path",
    model_type="bert",
    metric="f1",
    greater_is_better=True,
    best_step=20,
    validation={"loss": 1.5, "f1": 61.25, "exact": 50.0, "total": 8},
    log=[{"step": s, "loss": 3.0 / s} for s in (5, 15)]
    + [{"step": s, "eval_loss": 2.0 - s / 40, "eval_f1": 3.0 * s, "eval_exact": 2.0 * s} for s in (10, 20)],
    device="1 x cpu",
    speed={"train_seconds": 12.5, "train_samples_per_second": 33.25, "train_tokens_per_second": 4321.5},
    splits={
        "train": SplitReport(9, 0, 7, 11, {"no <b>question</b>": {"count": 2, "action": "dropped", "rows": [3, 4]}}),
        "validation": SplitReport(8, 0, 8, 8, {}),
        "test": SplitReport(8, 0, 8, 8, {}),
    },
    parameters={"learning_rate": 3e-4},
    versions={"torch": "2.x"},
)


def examined(i: int, **values: Any) -> Examined:
    blank = {"id": str(i), "row": i, "score": 0.0, "confidence": 0.5, "length": 3, "group": "", "title": "", "text": ""}
    return Examined(**{**blank, "marks": (), "predicted": "", "gold": (), **values})


class Page(HTMLParser):
    """Text by element, every attribute, and that each element that begins also ends."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))

    def within(self, tag: str) -> list[str]:
        return [text for path, text in self.texts if tag in path]


def evaluate(rows: list[dict[str, Any]], model: Path, folder: Path) -> tuple[Page, str]:
    """evaluation's own command line on rows -> the page, parsed and as text."""
    file = write_jsonl(folder / "rows.jsonl", rows)
    words = ["--task", "question_answering", "--test_data", str(file), "--pytorch_model_folder", str(model)]
    evaluation.main([*words, "--evaluation_result", str(folder / "out")])
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    return Page(html), html


@pytest.fixture(scope="module")
def folder_with_history(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    folder = tmp_path_factory.mktemp("history") / "model"
    shutil.copytree(tiny_model, folder)
    TRAINED.write(folder)
    return folder


@pytest.mark.slow
def test_numbers_are_those_of_metrics_json(folder_with_history: Path, tmp_path: Path) -> None:
    rows = sample_rows("test")[:40]
    for row in rows[::4]:
        row["answers"] = {"text": [], "answer_start": []}
    page, html = evaluate(rows, folder_with_history, tmp_path)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    cells = [text.strip() for text in page.within("td")]
    table = {cells[i]: cells[i + 1 : i + 4] for i, cell in enumerate(cells) if cell in ("all", "HasAns", "NoAns")}
    assert table == {
        name: [str(metrics[f"{prefix}total"]), f"{metrics[f'{prefix}exact']:.2f}", f"{metrics[f'{prefix}f1']:.2f}"]
        for name, prefix in (("all", ""), ("HasAns", "HasAns_"), ("NoAns", "NoAns_"))
    }
    shown = " ".join(cells)
    for name in ("best_f1", "best_f1_thresh"):
        assert f"{name}  {metrics[name]:.2f}" in re.sub(r"\s+", "  ", shown)
    assert f"{metrics['rows_per_second']:,.2f} rows/s" in cells
    for wanted in (
        "33.25 windows/s",
        "4,321.50 tokens/s",
        "1 x cpu",
        "learning_rate",
        "0.0003",
        "dropped 2: no <b>question</b>",
    ):
        assert any(wanted in cell for cell in cells), wanted
    assert html.count("<figure") == 4 and page.within("h1") == ["base"] and "/somewhere" not in html


@pytest.mark.slow
def test_page_needs_nothing_else(folder_with_history: Path, tmp_path: Path) -> None:
    page, html = evaluate(sample_rows("test")[:8], folder_with_history, tmp_path)
    links = [attrs[name] or "" for _, attrs in page.tags for name in ("src", "href", "xlink:href") if name in attrs]
    assert all(link.startswith("#") for link in links)
    assert {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"} == set()
    assert not re.search(r"url\((?!#)|@import", html)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert {link[1:] for link in links} <= set(ids)
    again = evaluate(sample_rows("test")[:8], folder_with_history, tmp_path)[1]
    timed = re.compile(r"[\d,.]+</b><span>rows/s.*|<td>evaluation</td>.*")
    assert timed.sub("", again) == timed.sub("", html)


@pytest.mark.slow
def test_hostile_and_right_to_left_rows(tiny_model: Path, tmp_path: Path) -> None:
    evil = "<script>alert('x')</script> & <b>"
    rows = [
        {"id": evil, "question": f"{evil}?", "context": f"{evil} Ada </p> wrote it.", "answers": None},
        {"id": "2", "question": "من كتب التقرير؟", "context": "كتبت آدا التقرير في عام ١٨٤٣.", "answers": None},
    ]
    for row, answer in zip(rows, ("Ada </p>", "آدا"), strict=True):
        row["answers"] = {"text": [answer], "answer_start": [row["context"].index(answer)]}
    page, _ = evaluate(rows, tiny_model, tmp_path)
    assert {tag for tag, _ in page.tags} & {"script", "b"} == {"b"}  # the head numbers are in <b>
    assert f"{evil}?" in page.within("h3")
    assert {"آدا", "Ada </p>"} <= set(page.within("dd"))
    assert all(attrs.get("dir") == "auto" for tag, attrs in page.tags if tag == "dd")
    quoted = "".join(page.within("blockquote"))
    assert all(row["context"] in quoted for row in rows)


@pytest.mark.slow
def test_rows_without_answers(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"question": row["question"], "context": row["context"]} for row in sample_rows("test")[:6]]
    page, html = evaluate(rows, tiny_model, tmp_path)
    assert "none with gold answers" in html and html.count("<figure") == 1 and "blockquote" not in dict(page.tags)
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_worst_are_those_of_sorting_everything() -> None:
    draw = random.Random(0)
    found = [
        examined(i, score=draw.choice([None, 0.0, 25.0, 50.0, 100.0]), confidence=draw.choice([None, 0.1, 0.5, 0.9]))
        for i in range(400)
    ]
    findings = Findings()
    for one in found:
        findings.add(one)
    wrong = [one for one in found if one.score is not None and one.score < 100]
    assert findings.worst() == sorted(wrong, key=lambda one: (one.score, -(one.confidence or 0), one.row))[:WORST]
    assert all(one.score == 0 for one in findings.worst())


def test_right_answers_are_not_among_the_worst() -> None:
    findings = Findings()
    for i, score in enumerate((100.0, 50.0, None)):
        findings.add(examined(i, score=score))
    assert [found.row for found in findings.worst()] == [1]


def test_calibration_by_hand() -> None:
    confidences = [0.15, 0.25, 0.22, 0.95, 1.0, float("nan"), 0.7]
    scores = [0.0, 100.0, 0.0, 100.0, 50.0, 100.0, float("nan")]
    bins, error = calibration(confidences, scores)
    assert [b.rows for b in bins] == [1, 2, 2]
    assert [b.score for b in bins] == [0, 50, 75]
    assert [b.confidence for b in bins] == pytest.approx([0.15, 0.235, 0.975])
    assert error == pytest.approx((0.15 + 2 * (0.5 - 0.235) + 2 * (0.975 - 0.75)) / 5)
    assert calibration([0.5], [float("nan")]) == ([], None)


def test_shares() -> None:
    findings = Findings()
    for i, (score, group) in enumerate([(100.0, "A"), (0.0, "A"), (40.0, "A"), (100.0, "B"), (None, "")]):
        findings.add(examined(i, score=score, group=group))
    every, a, b = shares(findings, ["A", "B"])
    assert (every.rows, every.right, every.partly, every.wrong) == (4, 50, 25, 25)
    assert (a.rows, a.right, a.partly) == (3, pytest.approx(100 / 3), pytest.approx(100 / 3))
    assert (b.name, b.rows, b.right, b.partly, b.wrong) == ("B", 1, 100, 0, 0)


def test_confusion() -> None:
    found = confusion(Breakdown({}, {"A": {"A": 3, "Z": 1}, "B": {"B": 3}}))
    assert list(found) == ["A", "B", "Z"]  # Z is predicted and never gold
    assert [found["A"]["A"], found["A"]["Z"], found["B"]["B"]] == [Cell(3, 0.75), Cell(1, 0.25), Cell(3, 1.0)]
    assert found["Z"] == dict.fromkeys("ABZ", Cell(0, 0.0))
    many = Breakdown({}, {f"c{i:02}": {f"c{i:02}": i} for i in range(1, MOST_CLASSES + 7)})
    assert list(confusion(many)) == [f"c{i:02}" for i in range(7, MOST_CLASSES + 7)]  # without the rarest


TEXTS = st.text(st.sampled_from("ab é🙂א\n"), max_size=900)


@given(TEXTS, st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900), st.sampled_from(["gold", "predicted"]))))
def test_cut_outs_hold_the_text_and_every_mark_near_by(text: str, drawn: list[tuple[int, int, str]]) -> None:
    marks = [(min(a, b, len(text)), min(max(a, b), len(text)), kind) for a, b, kind in drawn]
    found = cut_outs(text, marks)
    covered = np.zeros((len(text), 2), dtype=bool)
    for start, end, kind in marks:
        covered[start:end, int(kind == "predicted")] = True
    for low, high, parts in found:
        assert "".join(characters for characters, _ in parts) == text[low:high]
        kinds = [kind for characters, kind in parts for _ in characters]
        wanted = [
            " ".join(n for n, on in zip(("gold", "predicted"), row, strict=True) if on) for row in covered[low:high]
        ]
        assert kinds == wanted
    assert all(one.high < other.low for one, other in itertools.pairwise(found))
    for start, end, _ in marks[:8]:
        assert any(low <= start <= high for low, high, _ in found)
        assert any(low <= end <= high for low, high, _ in found)


def test_long_texts_are_cut() -> None:
    text = "word " * 10_000
    marks = [(20_000, 20_004, "gold"), (0, 50_000, "predicted")]
    found = cut_outs(text, marks)
    assert len(found) == 3 and sum(high - low for low, high, _ in found) < 600
    assert all(kind for _, _, parts in found for _, kind in parts)
    assert cut_outs(text, [])[0].low == 0 and len(cut_outs(text, [])) == 1
