"""Read MLTable folders."""

from pathlib import Path
from typing import TypedDict

from finetune.core.console import some
from finetune.core.errors import DataError, Fault, first_line
from finetune.core.reading import Unreadable, misfit, yaml_mapping
from finetune.core.types import Json
from finetune.data.delimited import delimited
from finetune.data.readers import READERS
from finetune.data.table import Table
from finetune.data.text import checked


class _MLTable(TypedDict):
    """What stands in the file MLTable, as far as it is read here."""

    paths: list[dict[str, str]]
    transformations: list[str | Json]


_MLTABLE_ENDINGS = {"read_json_lines": ".jsonl", "read_delimited": ".csv", "read_parquet": ".parquet"}


def read_mltable(folder: Path) -> Table:
    """Return the rows of a simple MLTable: `paths` of files or patterns, and one read_* transformation.

    The mltable package conflicts with current pandas and azure-identity, so the YAML is read directly.
    Raises: DataError if it is another kind of MLTable, or a file can't be read.
    """
    source = folder / "MLTable"
    if not source.is_file():
        raise DataError(Fault(f"{folder} has no file named MLTable", fix="give the folder that holds it"))
    try:
        spec = yaml_mapping(source)
    except Unreadable as reason:
        raise DataError(Fault(f"{source} can't be read", why=str(reason))) from None
    if not spec.get("transformations"):
        why, fix = "it has no transformation that reads files", f"use one of {', '.join(_MLTABLE_ENDINGS)}"
        raise DataError(Fault(f"{source} can't be read", why=why, fix=fix))
    if wrong := misfit(spec, _MLTable, "it"):
        fix = "write `paths:` and, below it, `- file: ./rows.jsonl`, then `transformations:` and `- read_json_lines`"
        raise DataError(Fault(f"{source} is not an MLTable of files", why=wrong, fix=fix))
    steps = {name: (options or {}) for step in spec["transformations"] for name, options in _step(step)}
    kind = next((name for name in _MLTABLE_ENDINGS if name in steps), None)
    unknown = [name for name in steps if name != kind]
    if kind is None or unknown:
        why = f"it asks for {', '.join(unknown)}" if unknown else "it has no transformation that reads files"
        raise DataError(Fault(f"{source} can't be read", why=why, fix=f"use one of {', '.join(_MLTABLE_ENDINGS)}"))
    if wrong := misfit(steps[kind], Json, kind):
        raise DataError(Fault(f"{source} can't be read", why=wrong))
    reader = READERS[_MLTABLE_ENDINGS[kind]]
    if kind == "read_delimited":
        given = steps[kind].get("delimiter")
        if given is not None and (not isinstance(given, str) or len(given) != 1 or given in '"\r\n\0'):
            fix = "delimiter: ',', or another single character"
            raise DataError(Fault(f"{given!r} can't stand between columns", where=str(source), fix=fix))
        reader = checked(delimited(given)) if given else READERS[".csv"]
    files = list(dict.fromkeys(path for entry in spec["paths"] for path in _files(folder, entry)))
    notes: list[str] = []
    table = Table.read(str(source), (row for path in files for row in reader(path, notes)), notes)
    if not table.rows:
        raise DataError(Fault(f"{source} names no rows", why=f"its paths match {len(files)} files"))
    return table


def _step(step: str | Json) -> list[tuple[str, Json]]:
    return [(step, {})] if isinstance(step, str) else list(step.items())


def _files(folder: Path, entry: dict[str, str]) -> list[Path]:
    """Return the files of an entry of `paths`. Raises: DataError if it isn't one, or names none."""
    where = str(folder / "MLTable")
    fix = "`- file: ./rows.jsonl`, or `- pattern: ./*.jsonl`, beside the MLTable file or below it"
    if len(entry) != 1 or not entry.keys() <= {"file", "pattern"}:
        raise DataError(
            Fault(
                f"a path of {some(sorted(entry)) or 'nothing'}",
                where=where,
                why="it is one of file or pattern",
                fix=fix,
            )
        )
    ((kind, value),) = entry.items()
    if "://" in value and not value.startswith("file://"):
        raise DataError(Fault(f"{value} is not a local path", where=where, fix=fix))
    value = value.removeprefix("file://").removeprefix("./")
    if kind == "file":
        return [folder / value]
    try:
        found = sorted(path for path in folder.glob(value) if path.is_file())
    except (ValueError, NotImplementedError, IndexError, OSError) as error:
        raise DataError(Fault(f"{value!r} is not a pattern", where=where, why=first_line(error), fix=fix)) from None
    if not found:
        raise DataError(Fault(f"the pattern {value!r} matches no file", where=where, fix=fix))
    return found
