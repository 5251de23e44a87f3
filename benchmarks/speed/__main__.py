"""Measure every case, or those that are named, and write results.json, table.md and speed.png.

--rounds and --seconds say how long; medians are over rounds. All cores are used, and what else runs on the machine is
seen in the load beside the figures.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed.cases import CASES
from benchmarks.speed.harness import CLOCKS, ROOT, measure
from benchmarks.speed.machine import described
from benchmarks.speed.results import plot, summary, table


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all if none is named")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each way in each round, at least")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: one thread, in its own seconds, for busy machines"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "speed")
    given = parser.parse_args()
    if unknown := set(given.cases) - set(CASES):
        sys.exit(f"no case is called {min(unknown)}: there are {', '.join(CASES)}")
    given.out.mkdir(parents=True, exist_ok=True)
    machine = described()
    print(", ".join(f"{name}: {value}" for name, value in machine.items()), flush=True)
    if not machine["bf16 instructions"]:
        print("ways in bf16 are left out: this processor has no instructions for it", flush=True)
    found: dict[str, Any] = {}
    folders: dict[Callable[[Path], None], Path] = {}  # what has been prepared
    with tempfile.TemporaryDirectory() as prepared:
        for name in given.cases or CASES:
            case = CASES[name]
            if case.prepare not in folders:
                folders[case.prepare] = Path(prepared) / name
                folders[case.prepare].mkdir()
                case.prepare(folders[case.prepare])
            measured = measure(case, given.rounds, given.seconds, given.clock, folders[case.prepare])
            found[name] = summary(case, measured)
            print(table(name, found[name]), flush=True)
            write({"machine": machine, "clock": given.clock, "cases": found}, given.out)
    print(f"written to {given.out}")


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Write what was measured so far as numbers, as a table and as a plot."""
    cases = results["cases"]
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    (folder / "table.md").write_text("\n".join(table(name, case) for name, case in cases.items()))
    plot(cases, folder / "speed.png")


if __name__ == "__main__":
    main()
