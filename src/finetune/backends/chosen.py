"""Choose among backends by what was measured of each. No library here."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A backend, and what it costs."""

    name: str
    score: float  # main metric on validation, 0 to 100
    p50_ms: float  # of one window at a time
    windows_per_second: float  # of a batch at a time
    disk_mb: float
    memory_mb: float | None  # peak of a process of its own; None where the system doesn't say
    distance: float  # the largest difference of a logit from PyTorch's in 32 bits


@dataclass(frozen=True)
class Choice:
    """What was chosen and why; where nothing fits, `found` is False and `row` the nearest."""

    row: Measured
    found: bool
    why: str


def choose(rows: Sequence[Measured], max_drop: float, target_ms: float | None) -> Choice:
    """Return the fastest of those that keep the score. The first row is what scores are compared with.

    Without a target there always is one: the first row keeps its own score.
    """
    base = rows[0]
    kept = keeping(rows, base, max_drop)
    fastest = min(kept, key=lambda row: row.p50_ms)
    lost = [f"{row.name} ({_points(base, row)})" for row in rows if row not in kept]
    without = f"; left out for more than {max_drop:g}: {', '.join(lost)}" if lost else ""
    than = "" if fastest is base else f", {_points(base, fastest)} than {base.name}"
    if target_ms is not None and fastest.p50_ms > target_ms:
        return Choice(fastest, False, f"{fastest.p50_ms:.1f} ms, not {target_ms:g}{than}{without}")
    within = f" of at most {target_ms:g}" if target_ms is not None else ""
    return Choice(fastest, True, f"the fastest, with {fastest.p50_ms:.1f} ms{within}{than}{without}")


def keeping(rows: Sequence[Measured], base: Measured, max_drop: float) -> list[Measured]:
    """Return the rows whose score is at most so many points below that of the base."""
    return [row for row in rows if base.score - row.score <= max_drop]


def best(rows: Sequence[Measured], base: Measured, max_drop: float) -> Measured:
    """Return the fastest of those that keep the score, or if none does, the one that loses least."""
    kept = keeping(rows, base, max_drop)
    return min(kept, key=lambda row: row.p50_ms) if kept else max(rows, key=lambda row: row.score)


def _points(base: Measured, row: Measured) -> str:
    drop = base.score - row.score
    return f"{abs(drop):.2f} points {'lower' if drop > 0 else 'higher'}" if drop else "no point lower"


COLUMNS = ("backend", "score", "ms", "windows/s", "disk MB", "memory MB", "logits differ")


def cells(row: Measured) -> tuple[str, ...]:
    """Return what the table says of a backend."""
    memory = "?" if row.memory_mb is None else f"{row.memory_mb:,.0f}"
    numbers = (f"{row.score:.2f}", f"{row.p50_ms:.1f}", f"{row.windows_per_second:.1f}", f"{row.disk_mb:,.1f}", memory)
    return row.name, *numbers, f"{row.distance:.1e}"


def table(rows: Sequence[Measured], metric: str) -> list[str]:
    """Return the lines of the table, in columns."""
    lines = [tuple(metric if name == "score" else name for name in COLUMNS), *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
