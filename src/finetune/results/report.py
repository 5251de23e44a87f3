"""Write report.html, one file that says how good a model is, and where and how it fails."""

import heapq
import itertools
import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from finetune.core.types import Json
from finetune.data.folders import Trained
from finetune.params.components import TASKS
from finetune.results import charts
from finetune.results.charts import CONFIDENCE_BINS, Bin
from finetune.results.templates import fill, label
from finetune.tasks.task import Breakdown, Examined, State, Task

WORST = 30
MOST_CLASSES = 24  # of the table of confusion
AROUND = 120  # characters shown on either side of a mark
MARKS = 8  # marks around which text is cut out; what lies near by is marked all the same
Mark = tuple[int, int, str]


class Findings:
    """The part of the rows that the report needs: three numbers and a group of each, and all of the worst."""

    def __init__(self) -> None:
        self.scores, self.confidences, self.lengths = array("d"), array("d"), array("d")  # NaN: there is none
        self.groups: list[str] = []
        self._worst: list[tuple[float, float, int, Examined]] = []  # a heap, the least bad first

    def add(self, found: Examined) -> None:
        self.scores.append(math.nan if found.score is None else found.score)
        self.confidences.append(math.nan if found.confidence is None else found.confidence)
        self.lengths.append(found.length)
        self.groups.append(found.group)
        if found.score is None or found.score >= 100:
            return
        entry = (-found.score, found.confidence or 0.0, -len(self.scores), found)
        if len(self._worst) < WORST:
            heapq.heappush(self._worst, entry)
        else:
            heapq.heappushpop(self._worst, entry)

    def worst(self) -> list[Examined]:
        """Return the rows with the lowest scores; among equals the most confident, whose wrong answers say more."""
        return [found for *_, found in sorted(self._worst, reverse=True)]


def write(
    path: Path,
    task: Task[State],
    model_name: str,
    findings: Findings,
    scores: dict[str, float],
    breakdown: Breakdown,
    facts: Json,
    state: State,
    parameters: Json,
    trained: Trained | None,
) -> None:
    """Write the page.

    `scores`, `breakdown` and `facts` are what metrics.json says, no scores where no row has gold; `state` is how
    outputs were decoded, `parameters` what was given to evaluation; `trained` is None where training left no record.
    """
    head = task.scoring.main_metric(state)
    groups = sorted({group for group in findings.groups if group})
    columns = [name for name in task.scoring.hub_metrics if name in scores]
    tabled = {*columns, *(f"{group}_{name}" for group in groups for name in columns)}
    bins, error = calibration(findings.confidences, findings.scores)
    page = fill(
        "report.html.j2",
        title=TASKS[task.name].title,
        model=model_name,
        head=head,
        scores=scores,
        full=task.scoring.full_score,
        gold=task.data.gold,
        breakdown=breakdown,
        confusion=confusion(breakdown),
        facts={**facts, "rows": len(findings.groups)},
        columns=columns,
        shares=shares(findings, groups) if scores else [],
        further={
            # Variants of the metrics above (strict_f1, best_f1) in percent, as they are.
            name: value * 100 / task.scoring.full_score
            if name.rpartition("_")[2] in task.scoring.hub_metrics
            else value
            for name, value in scores.items()
            if name not in tabled and not name.endswith("total")
        },
        calibration_error=error,
        charts={**training_charts(task, trained), **score_charts(findings, bins, label(head))},
        worst=[(found, cut_outs(found.text, found.marks)) for found in findings.worst()],
        settings=asdict(state),
        parameters={"training": trained.parameters if trained else {}, "evaluation": parameters},
        trained=trained,
    )
    path.write_text(page, encoding="utf-8")


class Cell(NamedTuple):
    """One pair of classes in the table of confusion."""

    words: int
    share: float  # of the words of its gold class, 0 to 1


def confusion(breakdown: Breakdown) -> dict[str, dict[str, Cell]]:
    """Return the cell of each gold and predicted class, for the MOST_CLASSES that occur most, in order of name."""
    totals = Counter({gold: sum(row.values()) for gold, row in breakdown.confusion.items()})
    for row in breakdown.confusion.values():
        totals.update(dict.fromkeys(row, 0))  # a class that is predicted but never gold
    names = sorted(name for name, _ in totals.most_common(MOST_CLASSES))
    return {
        gold: {
            name: Cell(count, count / max(1, totals[gold]))
            for name, count in ((name, breakdown.confusion.get(gold, {}).get(name, 0)) for name in names)
        }
        for gold in names
    }


class Share(NamedTuple):
    """The percentages of the rows of a group with the full score, some of it and none."""

    name: str
    rows: int
    right: float
    partly: float
    wrong: float


def shares(findings: Findings, groups: Sequence[str]) -> list[Share]:
    """Return the shares of all rows with gold, and of each group where there are several."""
    scores = np.asarray(findings.scores)
    chosen = {"": np.isfinite(scores)}
    if len(groups) > 1:
        chosen |= {group: np.array([g == group for g in findings.groups]) for group in groups}
    made = []
    for name, rows in chosen.items():
        right, wrong = 100 * float((scores[rows] >= 100).mean()), 100 * float((scores[rows] <= 0).mean())
        made.append(Share(name, int(rows.sum()), right, 100 - right - wrong, wrong))
    return made


def calibration(confidences: Sequence[float], scores: Sequence[float]) -> tuple[list[Bin], float | None]:
    """Return bins of equal width of confidence, without those that have no rows, and the expected calibration error.

    The error is the distance of mean confidence and mean score (both 0 to 1) in a bin, averaged over rows (Naeini et
    al. 2015); None without rows. Rows without confidence or score don't count.
    """
    confidence, score = np.asarray(confidences), np.asarray(scores)
    known = np.isfinite(confidence) & np.isfinite(score)
    confidence, score = confidence[known], score[known]
    which = np.minimum((confidence * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    of_bin = [which == b for b in np.unique(which)]
    bins = [Bin(float(confidence[rows].mean()), float(score[rows].mean()), int(rows.sum())) for rows in of_bin]
    error = sum(b.rows * abs(b.confidence - b.score / 100) for b in bins) / len(score) if bins else None
    return bins, error


class CutOut(NamedTuple):
    """A piece text[low:high], in parts of (characters, kinds of mark on them, "" for none)."""

    low: int
    high: int
    parts: list[tuple[str, str]]


def cut_outs(text: str, marks: Sequence[Mark]) -> list[CutOut]:
    """Return what stands around the marks, however they overlap, or how the text begins where there are none."""
    made = []
    for low, high in _around(text, marks[:MARKS]):
        edges = sorted({low, high, *(edge for start, end, _ in marks for edge in (start, end) if low < edge < high)})
        parts = [
            (text[a:b], " ".join(sorted({kind for start, end, kind in marks if start <= a and b <= end})))
            for a, b in itertools.pairwise(edges)
        ]
        made.append(CutOut(low, high, parts))
    return made


def _around(text: str, marks: Sequence[Mark]) -> list[tuple[int, int]]:
    # Around both ends of a mark and not all of it: one may be as long as the text.
    found: list[tuple[int, int]] = []
    for point in sorted({edge for start, end, _ in marks for edge in (start, end)}) or [0]:
        low, high = max(0, point - AROUND), min(len(text), point + AROUND)
        if found and low <= found[-1][1]:
            low = found.pop()[0]
        found.append((low, high))
    return [_at_spaces(text, low, high) for low, high in found]


def _at_spaces(text: str, low: int, high: int) -> tuple[int, int]:
    first = text.find(" ", low, low + AROUND // 4) + 1 if low else 0
    last = text.rfind(" ", high - AROUND // 4, high) if high < len(text) else high
    return first or low, last if last > 0 else high


def training_charts(task: Task[State], trained: Trained | None) -> dict[str, Markup]:
    """Return the charts of loss and metrics over steps, where training left a record."""
    if trained is None:
        return {}
    named = {"validation": "eval_loss", "training": "loss"}
    metrics = {label(name): f"eval_{name}" for name in task.scoring.hub_metrics}
    return {
        chart: charts.curves(
            {name: [(e["step"], e[key]) for e in trained.log if key in e] for name, key in keys.items()},
            trained.best_step,
        )
        for chart, keys in (("loss", named), ("metrics", metrics))
    }


def score_charts(findings: Findings, bins: list[Bin], metric: str) -> dict[str, Markup]:
    """Return the charts of calibration and of score by length; without gold, of how the confidences are spread."""
    scores, lengths, confidences = (np.asarray(a) for a in (findings.scores, findings.lengths, findings.confidences))
    scored, confident = np.isfinite(scores), np.isfinite(confidences)
    drawn = {}
    if bins:
        drawn["calibration"] = charts.reliability(bins, metric)
    elif confident.any():
        drawn["confidence"] = charts.histogram(confidences[confident])
    if scored.any():
        drawn["length"] = charts.by_length(lengths[scored], scores[scored], metric)
    return drawn
