"""Read Parquet files and data sets of the hub, whose classes may be numbers with names."""

import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypedDict

from finetune.core.errors import DataError, Fault, first_line
from finetune.core.reading import misfit
from finetune.core.types import Json
from finetune.data.table import Row, Table
from finetune.data.text import COPY_AGAIN, allowed, opened, too_large

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

ROWS_AT_A_TIME = 200
_MARK = b"PAR1"  # at both ends of a Parquet file


class _ClassLabel(TypedDict):
    """A column of classes, as the datasets library describes it."""

    _type: str
    names: list[str]


def parquet_rows(path: Path, _notes: list[str]) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    with opened(path) as packed:
        content = io.BytesIO(packed.read()) if path.suffix == ".gz" else packed
        try:
            file = pyarrow.parquet.ParquetFile(content)
            names = _class_names(_features(file.schema_arrow.metadata or {}))
            rows = (row for batch in _bounded(file, path) for row in batch.to_pylist())
            yield from enumerate((_with_names(row, names) for row in rows), start=1)
        except (pyarrow.ArrowException, ValueError, LookupError, ArithmeticError) as error:  # dates that Python has not
            if _begins_alone(content):
                why = "it begins as one, and its end is missing"
                raise DataError(Fault(f"{path} was cut off", why=why, fix=COPY_AGAIN)) from None
            raise DataError(Fault(f"{path} is not a Parquet file", why=first_line(error))) from None


def _begins_alone(content: BinaryIO) -> bool:
    """Return whether the mark of a Parquet file stands at its beginning and not at its end."""
    content.seek(0)
    first = content.read(len(_MARK))
    content.seek(-min(len(_MARK), content.seek(0, io.SEEK_END)), io.SEEK_END)
    return first == _MARK != content.read()


def _bounded(file: "ParquetFile", path: Path) -> "Iterator[RecordBatch]":
    """Yield the rows of a Parquet file. Raises: DataError where they take more memory than its size lets one expect.

    A value that is repeated stands in the file once.
    """
    from pyarrow import DictionaryArray

    left = allowed(path)
    for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME):
        for column in batch.columns:
            written_out = column.dictionary_decode() if isinstance(column, DictionaryArray) else column
            left -= written_out.nbytes + len(column)
        if left < 0:
            raise DataError(too_large(path))
        yield batch


def _features(metadata: dict[bytes, bytes]) -> Json:
    """Return how the datasets library describes the columns of a file; {} where it doesn't."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(features: Json) -> dict[str, list[str]]:
    """Return the names of the classes of each column whose classes the datasets library keeps as numbers."""
    inner = {column: kind.get("feature", kind) for column, kind in features.items() if isinstance(kind, dict)}
    classes = {column: kind for column, kind in inner.items() if not misfit(kind, _ClassLabel, column)}
    return {column: kind["names"] for column, kind in classes.items() if kind["_type"] == "ClassLabel"}


def _with_names(row: Row, names: dict[str, list[str]]) -> Row:
    """Return the row with its classes by name; -1 is datasets' word for none."""

    def named(value: object, of: list[str]) -> object:
        if isinstance(value, list):
            return [named(one, of) for one in value]
        if not isinstance(value, int):
            return value  # the file was written anew after it was described
        return of[value] if 0 <= value < len(of) else None

    return {**row, **{column: named(row[column], of) for column, of in names.items() if column in row}}


def read_hub(name: str, config: str | None) -> dict[str, Table]:
    """Return the splits of a Hugging Face data set, or of a local folder that `datasets` can load.

    A local folder is read from this machine alone. Raises: DataError if it can't be read.
    """
    import datasets

    if Path(name).is_dir():
        _refuse_remote_files(Path(name))
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
            # As they are stored: to decode an image or a sound is to fetch what its path names.
            stored = rows.with_format("arrow").iter(1000)
            made = (_with_names(row, names) for part in stored for row in part.to_pylist())
            tables[str(split)] = Table.read(f"{name} ({split})", enumerate(made, start=1))
    return tables


def _refuse_remote_files(folder: Path) -> None:
    """Raise DataError if the description of a local data set names files elsewhere, which `datasets` would fetch."""
    import yaml
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    card, plain = folder / "README.md", folder / ".huggingface.yaml"
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in (card, plain) if path.is_file()}
    if card in texts:
        head = REGEX_YAML_BLOCK.search(texts[card])
        texts[card] = head[2] if head else ""
    for path, text in texts.items():
        try:
            described = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise DataError(Fault(f"the description in {path} is not YAML", why=str(error), fix="mend it")) from None
        configs = described.get("configs") if isinstance(described, dict) else None
        files = [value for value in _texts(configs) if "://" in value]
        if files:
            why = "a local folder is read from this machine alone"
            fix = "download them into the folder, and name them there"
            raise DataError(Fault(f"{path} names files elsewhere: {', '.join(files)}", why=why, fix=fix))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
