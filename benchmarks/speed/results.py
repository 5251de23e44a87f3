"""What was measured, as numbers, as a table and as a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed.harness import Case, Round

GIGABYTE = 1e9


def summary(case: Case, rounds: Mapping[str, Sequence[Round]]) -> dict[str, Any]:
    """Return the medians over rounds of a case: rates, ratios and shares are those within each round."""
    ways = {}
    for name, of_way in rounds.items():
        if not of_way[0].windows:  # it multiplies matrices
            ways[name] = {"gflops": median(operations(r) for r in of_way) / 1e9, "rounds": [asdict(r) for r in of_way]}
            continue
        rates = [rate(case, name, r) for r in of_way]
        ratios = {
            other: median(mine / rate(case, other, its) for mine, its in zip(rates, rounds[other], strict=True))
            for other in case.baselines
            if other in rounds
        }
        ways[name] = {
            "what": case.ways[name].what,
            "windows_per_second": median(rates),
            "lowest_and_highest": [min(rates), max(rates)],
            "times": ratios,
            "share_of_peak": shares(case, name, rounds),
            "peak_memory_gb": max(r.peak_memory for r in of_way) / GIGABYTE,
            "rounds": [asdict(r) for r in of_way],
        }
    return {"what": case.what, "ways": ways}


def rate(case: Case, way: str, done: Round) -> float:
    """Return windows of average length in a second.

    A step of long windows takes longer, unless all are padded to one length: where time goes with tokens, they are
    counted, so that a round does not depend on which windows it had.
    """
    if case.ways[way].goes_with == "windows":
        return done.windows / done.seconds
    return done.tokens / case.tokens / done.seconds


def operations(done: Round) -> float:
    return done.operations / done.seconds


def shares(case: Case, way: str, rounds: Mapping[str, Sequence[Round]]) -> dict[str, float]:
    """Return the operations a second as a share of those of matrix multiplication alone, in each number format."""
    found = {}
    for peak, multiplied in rounds.items():
        if multiplied[0].windows:
            continue
        of_window = sum(r.operations for r in rounds[way]) / sum(r.tokens for r in rounds[way]) * case.tokens
        pairs = zip(rounds[way], multiplied, strict=True)
        found[peak] = median(rate(case, way, mine) * of_window / operations(its) for mine, its in pairs)
    return found


def shown(rate: float) -> str:
    return f"{rate:.{1 if rate >= 1 else 3}f}"


def table(name: str, found: Mapping[str, Any]) -> str:
    """Return a case as Markdown."""
    ways = {way: of for way, of in found["ways"].items() if "times" in of}
    peaks = {way: of for way, of in found["ways"].items() if "gflops" in of}
    baselines = list(next(iter(ways.values()))["times"])
    head = ["way", "windows/s", *(f"x {other}" for other in baselines), *(f"of {peak}" for peak in peaks), "memory"]
    lines = [f"{name}: {found['what']}.", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for way, of in ways.items():
        middle, low, high = map(shown, (of["windows_per_second"], *of["lowest_and_highest"]))
        cells = [f"{way}: {of['what']}", f"{middle} ({low} to {high})"]
        cells += [f"{of['times'][other]:.2f}" for other in baselines]
        cells += [f"{of['share_of_peak'][peak]:.0%}" for peak in peaks]
        cells.append(f"{of['peak_memory_gb']:.2f} GB")
        lines.append(f"| {' | '.join(cells)} |")
    loads = [r["load"] for of in found["ways"].values() for r in of["rounds"]]
    lines += ["", *(f"{peak}: {of['gflops']:.0f} GFLOP/s." for peak, of in peaks.items())]
    lines += [f"Load of the machine: {min(loads):.1f} to {max(loads):.1f}."]
    return "\n".join(lines) + "\n"


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Draw windows per second of each way, every round a dot."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(found), squeeze=False, figsize=(8, 2.6 * len(found)), layout="constrained")
    for axis, (name, case) in zip(axes[:, 0], found.items(), strict=True):
        ways = {way: of for way, of in case["ways"].items() if "times" in of}
        names = list(reversed(ways))
        rates = [ways[way]["windows_per_second"] for way in names]
        bars = axis.barh(names, rates, color=["#2a78b5" if way.startswith("finetune") else "#b9c4cc" for way in names])
        for y, way in enumerate(names):
            axis.plot(ways[way]["lowest_and_highest"], [y, y], color="black", linewidth=1)
        axis.bar_label(bars, [f" {shown(rate)}" for rate in rates], padding=12)
        axis.set_title(f"{name}, windows/s", loc="left", fontsize=10)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
