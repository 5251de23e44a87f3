"""Write what was measured: backends.json for programs, backends.html for people."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes

from finetune.backends.chosen import COLUMNS, Choice, Measured, cells
from finetune.core.types import Json
from finetune.results.charts import FIRST, QUIET, SECOND, drawing
from finetune.results.templates import fill, label


def write(folder: Path, model: str, metric: str, rows: Sequence[Measured], choice: Choice, facts: Json) -> None:
    """Write both files. `facts` is how it was measured."""
    record = {
        "chosen": choice.row.name if choice.found else None,
        "nearest": choice.row.name,
        "why": choice.why,
        "metric": metric,
        "backends": [asdict(row) for row in rows],
        **facts,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / "backends.json").write_text(text + "\n", encoding="utf-8")
    names = [row.name for row in rows]
    what = "what is written for a window" if facts["writes"] else "a window"
    page = fill(
        "backends.html.j2",
        folder=Path(__file__).parent,
        model=model,
        choice=choice,
        head=[label(metric) if name == "score" else name for name in COLUMNS],
        rows=[cells(row) for row in rows],
        facts=facts,
        charts={
            f"Milliseconds of {what}, half take less": bars(names, [r.p50_ms for r in rows], choice.row.name, "ms"),
            "Megabytes on disk": bars(names, [r.disk_mb for r in rows], choice.row.name, "MB"),
        },
    )
    (folder / "backends.html").write_text(page, encoding="utf-8")


@drawing
def bars(axes: Axes, names: Sequence[str], values: Sequence[float], chosen: str, unit: str) -> None:
    """Draw a bar for each backend, the first on top; that of the chosen one has another colour."""
    places = range(len(names))
    axes.barh(places, values, color=[SECOND if name == chosen else FIRST for name in names], height=0.66)
    for place, value in zip(places, values, strict=True):
        axes.annotate(f"{value:,.1f}", (value, place), (4, -3), textcoords="offset points", color=QUIET, fontsize=7.5)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
