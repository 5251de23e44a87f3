"""The rows of a file with the place where each stands, and the account of what was wrong with them."""

from dataclasses import dataclass, field

from finetune.core.console import some
from finetune.core.errors import DataError, Fault
from finetune.core.types import Json
from finetune.params.schema import did_you_mean

Row = Json


FIRST_ROWS_SHOWN = 5
REASONS_SHOWN = 30


@dataclass(frozen=True)
class Table:
    """The rows of one file. `numbers[i]` is where row i stands: the line of a text file, the record of another.

    `notes` say how it was read where it allowed more than one reading, a line each.
    """

    name: str
    columns: tuple[str, ...]
    rows: list[Row]
    numbers: list[int]
    notes: tuple[str, ...] = ()

    def require(self, columns: dict[str, str]) -> None:
        """Raise DataError if a column is missing; `columns` maps parameter names to column names."""
        faults = []
        for parameter, column in columns.items():
            if column not in self.columns:
                what = f"no column {column!r}{did_you_mean(column, self.columns)}"
                fix = f"--{parameter} with one of: {some(self.columns)}"
                faults.append(Fault(what, where=self.name, why="; ".join(self.notes), fix=fix))
        if faults:
            raise DataError(*faults)


@dataclass
class Audit:
    """The account of rows dropped, repaired or kept with a remark: for each reason the action and the row numbers.

    What is passed over holds no row; its numbers are those of what the reason names.
    """

    problems: dict[str, Json] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # how the file was read
    fixes: dict[str, str] = field(default_factory=dict)  # reason -> what to type, where a parameter mends it

    def add(self, action: str, reason: str, number: int, fix: str = "") -> None:
        if fix:
            self.fixes[reason] = fix
        entry = self.problems.setdefault(reason, {"action": action, "count": 0, "rows": []})
        entry["count"] += 1
        if len(entry["rows"]) < FIRST_ROWS_SHOWN:
            entry["rows"].append(number)

    @property
    def dropped(self) -> int:
        return sum(p["count"] for p in self.problems.values() if p["action"] == "dropped")

    def lines(self) -> list[str]:
        """Return one line for each reason, for the log; of very many reasons the first."""
        lines = [
            f"{p['action']} {p['count']}: {reason} ("
            f"{'' if p['action'] == 'passed over' else 'rows '}{', '.join(map(str, p['rows']))}"
            f"{', …' if p['count'] > len(p['rows']) else ''})"
            for reason, p in list(self.problems.items())[:REASONS_SHOWN]
        ]
        more = len(self.problems) - REASONS_SHOWN
        return lines if more <= 0 else [*lines, f"… {more:,} more reasons"]
