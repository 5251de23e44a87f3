"""Write windows as they are made, so that memory doesn't grow with their number."""

from pathlib import Path

import datasets
import pyarrow

from finetune.data.batches import Columns

WINDOWS = 1000  # in a record batch of the file, as datasets has it


class WindowsFile:
    """A folder of windows, as `datasets.load_from_disk` reads it, that is written part by part.

    The folder is made with the first window.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.written = folder, 0
        self._parts: list[pyarrow.Table] = []
        self._writer: pyarrow.RecordBatchStreamWriter | None = None

    def __enter__(self) -> "WindowsFile":
        return self

    def __exit__(self, *_error: object) -> None:
        self._flush()
        if self._writer:
            self._writer.close()

    def write(self, columns: Columns) -> None:
        """Add windows, whose columns are those of the first ones."""
        part = pyarrow.table({name: pyarrow.array(values, _type(values)) for name, values in columns.items()})
        self._parts.append(part)
        self.written += part.num_rows
        if sum(one.num_rows for one in self._parts) >= WINDOWS:
            self._flush()

    def _flush(self) -> None:
        if not self._parts:
            return
        table = pyarrow.concat_tables(self._parts).combine_chunks()
        self._parts = []
        if self._writer is None:
            self._writer = self._begun(table.slice(0, 1))
        self._writer.write_table(table, WINDOWS)

    def _begun(self, first: pyarrow.Table) -> pyarrow.RecordBatchStreamWriter:
        """Return what writes in the place of the first window, which `datasets` saves with what it says of a folder."""
        datasets.Dataset(first, fingerprint=self.folder.parent.name).save_to_disk(self.folder)
        (file,) = self.folder.glob("*.arrow")
        with pyarrow.ipc.open_stream(file) as saved:
            schema = saved.schema
        return pyarrow.ipc.new_stream(file, schema)


def _type(values: list[object]) -> pyarrow.DataType:
    return pyarrow.int32() if not values or isinstance(values[0], int) else pyarrow.list_(pyarrow.int32())
