"""The process of one way: python -m benchmarks.speed.worker CASE WAY CLOCK FOLDER.

Reports go to stdout, all else to stderr.
"""

import os
import sys
from pathlib import Path

from benchmarks.speed.cases import CASES
from benchmarks.speed.harness import Meter


def main() -> None:
    case, way, clock, folder = sys.argv[1:]
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    chosen = CASES[case].ways[way]
    chosen.run(Path(folder), Meter(chosen.warm_up, clock, reports))


if __name__ == "__main__":
    main()
