"""The folders between components. The JSON of each is written last: if it exists, the folder is complete."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from finetune.core.errors import Fault, HandoffError, first_line
from finetune.core.reading import Unreadable, json_object, made, misfit, no_file
from finetune.core.types import Json
from finetune.data.table import StoredRows

VERSION = 1
T = TypeVar("T")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class SelectedModel:
    """The output of model import: FOLDER/model_selector_args.json and FOLDER/model/."""

    task: str
    source: str  # huggingface_id, pytorch_model_path or mlflow_model_path
    source_name: str  # an id of the hub, or the absolute path of a folder
    model_type: str
    architecture: str  # the class that finetuning will load
    new_weights: tuple[str, ...]  # names of weights that the source lacks and that start at random

    def write(self, folder: Path) -> None:
        _write(folder / "model_selector_args.json", self)

    @classmethod
    def read(cls, folder: Path, task: str) -> "SelectedModel":
        """Return what the folder holds. Raises: HandoffError if it can't be used for the task."""
        values = _read(cls, folder / "model_selector_args.json", task, "model_selector_output", "model_selector")
        return cls(**{**values, "new_weights": tuple(values["new_weights"])})

    @property
    def hub_id(self) -> str | None:
        """The id of the model, where it comes from the Hugging Face hub."""
        name = self.source_name
        local = self.source != "huggingface_id" or Path(name).is_absolute() or Path(name).is_dir()
        return None if local else name

    @staticmethod
    def model_folder(folder: Path) -> Path:
        return folder / "model"


@dataclass(frozen=True)
class SplitReport:
    """What became of the rows of one split."""

    rows_read: int
    rows_left_out: int  # by max_train_samples or max_eval_samples
    rows_kept: int
    windows: int  # 0 for test: evaluation encodes it, for the model that it is given
    problems: dict[str, Json]  # reason -> {"count", "action", "rows": first row numbers}


@dataclass(frozen=True)
class Preprocessed:
    """The output of preprocess: preprocess.json, tokenizer/, and for each split rows.jsonl and windows/ (Arrow).

    The test split has no windows: evaluation makes them for the model that it is given.
    """

    task: str
    state: Json  # the task's own: how rows are encoded and decoded
    splits: dict[str, SplitReport]
    model_type: str
    split_source: str  # where validation and test come from

    def write(self, folder: Path) -> None:
        _write(folder / "preprocess.json", self)

    def state_as(self, state: Callable[..., T]) -> T:
        """Return the task's own part, given its class. Raises: HandoffError if it is damaged."""
        try:
            return made(state, self.state, "state")
        except Unreadable as reason:
            raise _damaged("preprocess.json", str(reason), "preprocess") from None

    @classmethod
    def read(cls, folder: Path, task: str) -> "Preprocessed":
        """Return what the folder holds. Raises: HandoffError if it can't be used for the task."""
        values = _read(cls, folder / "preprocess.json", task, "preprocess_output", "preprocess")
        values["splits"] = {name: SplitReport(**report) for name, report in values["splits"].items()}
        for name in values["splits"]:
            encoded = values["splits"][name].windows
            for path in (cls.rows_file(folder, name), *([cls.windows_folder(folder, name)] if encoded else [])):
                if not path.exists():
                    raise HandoffError(Fault(f"{path} is missing", fix="run preprocess again"))
        return cls(**values)

    @staticmethod
    def tokenizer_folder(folder: Path) -> Path:
        return folder / "tokenizer"

    @staticmethod
    def rows_file(folder: Path, split: str) -> Path:
        return folder / split / "rows.jsonl"

    @staticmethod
    def windows_folder(folder: Path, split: str) -> Path:
        return folder / split / "windows"


@dataclass(frozen=True)
class Trained:
    """The training.json beside the weights of a finetuned model: where they come from and how training went."""

    task: str
    base_model: str  # an id of the hub, or the name of a folder, without where it lies
    source: str  # huggingface_id for an id of the hub, pytorch_model_path or mlflow_model_path
    model_type: str
    metric: str  # the best model has its lowest or highest value
    greater_is_better: bool
    best_step: int
    validation: dict[str, float]  # metrics of the best model
    log: list[dict[str, float]]  # {"step", "loss", …} of training, {"step", "eval_loss", "eval_…"} of validation
    device: str
    speed: dict[str, float]  # train_seconds, train_samples_per_second, train_tokens_per_second
    splits: dict[str, SplitReport]
    parameters: Json  # those away from their defaults
    versions: dict[str, str]  # package -> version
    run: str = ""  # the name that its checkpoints have for it

    FILE = "training.json"

    def write(self, folder: Path) -> None:
        _write(folder / self.FILE, self)

    @classmethod
    def read(cls, folder: Path, task: str) -> "Trained | None":
        """Return the record, or None: any Hugging Face folder can be scored. Raises: HandoffError if it is damaged."""
        path = folder / cls.FILE
        if not path.is_file():
            return None
        more = ", or remove the file: the model is scored without it"
        values = _read(cls, path, task, "pytorch_model_folder", "run", more)
        splits = {name: SplitReport(**report) for name, report in values["splits"].items()}
        return cls(**{**values, "splits": splits})

    @property
    def hub_id(self) -> str | None:
        """The id of the base model, where it comes from the Hugging Face hub."""
        return self.base_model if self.source == "huggingface_id" and not Path(self.base_model).is_absolute() else None

    @property
    def base_name(self) -> str:
        """The last part of the base model's id or path."""
        return Path(self.base_model).name


def write_rows(path: Path, rows: Iterable[Json]) -> None:
    """Write one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=True) + "\n")  # half a surrogate pair can't be written as UTF-8


def read_rows(path: Path, damage: Callable[[Json], str] = lambda _row: "") -> StoredRows:
    """Return the rows that `write_rows` wrote. Raises: HandoffError if they can't be read, or `damage` has a reason."""
    return StoredRows.of(_rows(path, damage))


def _rows(path: Path, damage: Callable[[Json], str]) -> Iterator[Json]:
    number = 1
    try:
        if why := no_file(path):
            raise Unreadable(f"it {why}")
        with path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                row = json.loads(line)
                if why := damage(row):
                    raise Unreadable(why)
                yield row
                number += 1
    except (OSError, ValueError, RecursionError, Unreadable) as reason:
        raise _damaged(path, f"line {number}: {first_line(reason)}", "preprocess") from None


def _write(path: Path, record: "SelectedModel | Preprocessed | Trained") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"version": VERSION, **dataclasses.asdict(record)}, indent=2, ensure_ascii=False)
    part = path.with_suffix(".part")
    # Half a surrogate pair, of a path that isn't UTF-8, becomes the escape that JSON has for it.
    part.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    part.replace(path)


def _damaged(path: Path | str, why: str, module: str, more: str = "") -> HandoffError:
    return HandoffError(Fault(f"{path} is damaged", why=why, fix=f"run `python -m finetune.{module}` again{more}"))


def _read(kind: type, path: Path, task: str, port: str, module: str, more: str = "") -> Json:
    """Return the fields of a record, each of its type. `more` is another fix of damage. Raises: HandoffError."""
    if not path.is_file():
        fix = f"pass the output folder of `python -m finetune.{module}` as --{port}"
        raise HandoffError(
            Fault(f"{path.parent} has no {path.name}", why="the component before this one writes it last", fix=fix)
        )
    try:
        values = json_object(path)
    except Unreadable as reason:
        raise _damaged(path, str(reason), module, more) from None
    if values.pop("version", None) != VERSION:
        raise HandoffError(
            Fault(f"{path} is of another version", fix=f"run `python -m finetune.{module}` of this version again")
        )
    if values.get("task") != task and isinstance(values.get("task"), str):
        raise HandoffError(
            Fault(f"{path} was made for {values['task']}, not for {task}", fix=f"--task {values['task']}")
        )
    if why := misfit(values, kind, "it"):
        raise _damaged(path, why, module, more)
    return values
