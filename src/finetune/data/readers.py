"""Read a file of rows as a table, by the ending of its name."""

from pathlib import Path

from finetune.core.errors import DataError, Fault
from finetune.data.arrow import parquet_rows
from finetune.data.conll import word_columns
from finetune.data.delimited import OTHER_DELIMITERS, delimited
from finetune.data.table import Table
from finetune.data.text import Reader, checked, json_lines, json_list, refuse_no_file


def read_table(path: Path) -> Table:
    """Read jsonl, json, csv, tsv, parquet or CoNLL's columns, each also as .gz, by the ending of its name.

    Raises: DataError with the file, and the line where there is one.
    """
    refuse_no_file(path)
    ending = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if ending not in READERS:
        why = f"its ending is none of {', '.join(READERS)} (each also with .gz)"
        raise DataError(Fault(f"{path} is of an unknown format", why=why, fix="convert or rename the file"))
    notes: list[str] = []
    table = Table.read(str(path), READERS[ending](path, notes), notes)
    if not table.rows:
        raise DataError(Fault(f"{path} has no rows", fix="give a file with at least one row"))
    return table


READERS: dict[str, Reader] = {
    ".jsonl": checked(json_lines),
    ".json": checked(json_list),
    ".csv": checked(delimited(",", *OTHER_DELIMITERS)),
    ".tsv": checked(delimited("\t", *OTHER_DELIMITERS)),
    ".parquet": checked(parquet_rows),
    **dict.fromkeys((".conll", ".conllu", ".bio", ".iob", ".txt"), checked(word_columns)),
}
