"""Read MLTable folders."""

from pathlib import Path

from finetune.core.errors import DataError, Fault
from finetune.core.types import Json
from finetune.data.delimited import delimited
from finetune.data.readers import READERS
from finetune.data.table import Table
from finetune.data.text import checked

_MLTABLE_ENDINGS = {"read_json_lines": ".jsonl", "read_delimited": ".csv", "read_parquet": ".parquet"}


def read_mltable(folder: Path) -> Table:
    """Return the rows of a simple MLTable: `paths` of files or patterns, and one read_* transformation.

    The mltable package conflicts with current pandas and azure-identity, so the YAML is read directly.
    Raises: DataError if it is another kind of MLTable, or a file can't be read.
    """
    import yaml

    source = folder / "MLTable"
    if not source.is_file():
        raise DataError(Fault(f"{folder} has no file named MLTable", fix="give the folder that holds it"))
    try:
        spec = yaml.safe_load(source.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(Fault(f"{source} is not valid YAML", why=str(error))) from None
    if not isinstance(spec, dict) or not isinstance(spec.get("paths"), list):
        raise DataError(
            Fault(f"{source} has no list of paths", fix="write `paths:` and, below it, `- file: ./rows.jsonl`")
        )
    steps = {name: (options or {}) for step in spec.get("transformations", []) for name, options in _step(step)}
    kind = next((name for name in _MLTABLE_ENDINGS if name in steps), None)
    unknown = [name for name in steps if name != kind]
    if kind is None or unknown:
        why = f"it asks for {', '.join(unknown)}" if unknown else "it has no transformation that reads files"
        raise DataError(Fault(f"{source} can't be read", why=why, fix=f"use one of {', '.join(_MLTABLE_ENDINGS)}"))
    reader = READERS[_MLTABLE_ENDINGS[kind]]
    if kind == "read_delimited":
        given = steps[kind].get("delimiter")
        reader = checked(delimited(given)) if given else READERS[".csv"]
    files = [path for entry in spec["paths"] for path in _mltable_files(folder, entry)]
    notes: list[str] = []
    found = [(number, row) for path in files for number, row in reader(path, notes)]
    if not found:
        raise DataError(Fault(f"{source} names no rows", why=f"its paths match {len(files)} files"))
    columns = tuple(dict.fromkeys(name for _, row in found for name in row))
    return Table(str(source), columns, [row for _, row in found], [number for number, _ in found], tuple(notes))


def _step(step: str | Json) -> list[tuple[str, Json]]:
    return [(step, {})] if isinstance(step, str) else list(step.items())


def _mltable_files(folder: Path, entry: dict[str, str]) -> list[Path]:
    (kind, value), *_ = entry.items()
    if "://" in value and not value.startswith("file://"):
        fix = "use paths beside the MLTable file"
        raise DataError(Fault(f"{value} is not a local path", where=str(folder / "MLTable"), fix=fix))
    value = value.removeprefix("file://").removeprefix("./")
    return sorted(folder.glob(value)) if kind == "pattern" else [folder / value]
