"""Read Parquet files and data sets of the hub, whose classes may be numbers with names."""

import gzip
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.core.errors import DataError, Fault
from finetune.core.types import Json
from finetune.data.table import Row, Table
from finetune.data.text import COPY_AGAIN


def parquet_rows(path: Path, _notes: list[str]) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    raw = gzip.open(path, "rb").read() if path.suffix == ".gz" else path.read_bytes()
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(raw))
    except (pyarrow.ArrowException, pyarrow.ArrowInvalid) as error:
        if raw.startswith(b"PAR1") and not raw.endswith(b"PAR1"):
            why = "it begins as one, and its end is missing"
            raise DataError(Fault(f"{path} was cut off", why=why, fix=COPY_AGAIN)) from None
        raise DataError(Fault(f"{path} is not a Parquet file", why=str(error).splitlines()[0])) from None
    described = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    names = _class_names(described.get("info", {}).get("features", {}))
    for number, row in enumerate(table.to_pylist(), start=1):
        yield number, _with_names(row, names)


def _class_names(features: Json) -> dict[str, list[str]]:
    """Return the names of the classes of each column whose classes the datasets library keeps as numbers."""
    inner = {column: kind.get("feature", kind) for column, kind in features.items() if isinstance(kind, dict)}
    return {column: kind["names"] for column, kind in inner.items() if kind.get("_type") == "ClassLabel"}


def _with_names(row: Row, names: dict[str, list[str]]) -> Row:
    """Return the row with its classes by name; -1 is datasets' word for none."""

    def named(value: Any, of: list[str]) -> Any:
        if isinstance(value, list):
            return [named(one, of) for one in value]
        if not isinstance(value, int):
            return value  # the file was written anew after it was described
        return of[value] if 0 <= value < len(of) else None

    return {**row, **{column: named(row[column], of) for column, of in names.items() if column in row}}


def read_hub(name: str, config: str | None) -> dict[str, Table]:
    """Return the splits of a Hugging Face data set, or of a local folder that `datasets` can load.

    Raises: DataError if it can't be read.
    """
    import datasets

    with tempfile.TemporaryDirectory() as fresh:
        # The shared cache knows a folder whose README names configurations by its last name alone: it would give the
        # rows of another folder, or those that the files held before.
        cache = fresh if Path(name).is_dir() else None
        try:
            splits = datasets.load_dataset(name, config, cache_dir=cache)
        except Exception as error:  # datasets raises errors of a dozen unrelated classes here
            fix = "check --dataset_name and the network, or give --train_file_path"
            raise DataError(
                Fault(f"data set {name} can't be loaded", why=f"{type(error).__name__}: {error}", fix=fix)
            ) from None
        tables = {}
        for split, rows in splits.items():
            names = _class_names(rows.features.to_dict())
            made = [_with_names(row, names) for row in rows]
            numbers = list(range(1, len(made) + 1))
            tables[str(split)] = Table(f"{name} ({split})", tuple(rows.column_names), made, numbers)
    return tables
