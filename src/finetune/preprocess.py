"""Preprocess files of rows into encoded train, validation and test windows, and give an account of every row.

python -m finetune.preprocess --task question_answering --train_file_path F --model_selector_output M --output_dir OUT
"""

import random
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from finetune.core.console import progress, quiet_libraries, say, start
from finetune.core.errors import DataError, Fault
from finetune.core.outputs import claimed, clear
from finetune.core.process import run_main
from finetune.data.arrow import read_hub
from finetune.data.folders import SPLITS, Preprocessed, SelectedModel, SplitReport, write_rows
from finetune.data.mltable import read_mltable
from finetune.data.readers import read_table
from finetune.data.table import Audit, Row, StoredRows
from finetune.data.values import hashes
from finetune.distributed.settlement import settle_task
from finetune.models.stored import intact, sums
from finetune.params.datapreprocess import PREPROCESSED, DataFiles, Encoding
from finetune.params.schema import outputs_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

    from finetune.data.batches import Columns
    from finetune.tasks.task import State, Task

SPLIT_SEED = 0  # the split of the same file is the same for every run and every training seed


def main(argv: list[str]) -> None:
    task_name, settled = settle_task(argv, "datapreprocess", "finetune.preprocess")
    params = settled.params
    start("preprocess", settled.notes)
    with claimed(outputs_of(params)):
        preprocess(params, task_name)


def preprocess(params: Any, task_name: str) -> None:
    """Read the rows, encode them, and write last the account of them."""
    selected = SelectedModel.read(params.model_selector_output, task_name)
    model_folder = SelectedModel.model_folder(params.model_selector_output)
    intact.refuse_broken(model_folder)
    sums.tell_changed(model_folder)

    quiet_libraries()
    from finetune.models.stored.tokenizers import imported
    from finetune.tasks import load_task

    task = load_task(task_name)
    model = imported(model_folder, task)
    tokenizer, model_length = model.tokenizer, model.longest_window

    splits = usable_rows(params, task)
    rows, audits = splits.rows, splits.audits
    state = task.data.fit(params, rows, model)
    say_derived(params, task, state, rows, model_length)
    clear(params.output_dir, PREPROCESSED)
    unencoded = {name: Audit() for name in SPLITS}
    windows = {"test": 0}  # evaluation encodes it
    for name in ("train", "validation"):
        rows[name], windows[name] = write_windows(name, rows[name], task, tokenizer, state, params, unencoded[name])
    longer = "--max_seq_length -1" if state.max_seq_length < model_length else ""
    refuse_losses(rows, unencoded, params.max_dropped_fraction, longer)
    refuse_no_windows(windows["validation"], unencoded["validation"], longer)
    for name in SPLITS:
        write_rows(Preprocessed.rows_file(params.output_dir, name), rows[name])
    tokenizer.save_pretrained(Preprocessed.tokenizer_folder(params.output_dir))
    reports = {
        name: SplitReport(
            rows_read=splits.read[name],
            rows_left_out=splits.left_out[name],
            rows_kept=len(rows[name]),
            windows=windows[name],
            problems=audits[name].problems | unencoded[name].problems,
        )
        for name in SPLITS
    }
    Preprocessed(task_name, asdict(state), reports, selected.model_type, splits.source).write(params.output_dir)
    report(reports, splits.source)


@dataclass(frozen=True)
class Splits:
    """The rows of each split that can be used, and the account of the others."""

    rows: dict[str, StoredRows]
    audits: dict[str, Audit]
    read: dict[str, int]
    left_out: dict[str, int]  # by max_train_samples or max_eval_samples
    source: str  # where validation and test come from


def usable_rows(params: Any, task: "Task[State]") -> Splits:
    """Read, validate, split and sample the rows. Raises: DataError with the faults of all files."""
    audits = {name: Audit() for name in SPLITS}
    given = read_splits(params, task, audits)
    for name in given.keys() - {"test"}:
        given[name] = with_gold(given[name], task, audits[name])
    refuse_losses(given, audits, params.max_dropped_fraction)  # before they are split, for the true reason
    rows, source = split(given, task)
    read = {name: len(rows[name]) + audits[name].dropped for name in SPLITS}
    limits = {"train": params.max_train_samples, "validation": params.max_eval_samples, "test": params.max_eval_samples}
    left_out = {name: max(0, len(rows[name]) - limits[name]) if limits[name] >= 0 else 0 for name in SPLITS}
    return Splits({name: sample(rows[name], limits[name]) for name in SPLITS}, audits, read, left_out, source)


def read_splits(params: DataFiles, task: "Task[State]", audits: dict[str, Audit]) -> dict[str, StoredRows]:
    """Return the valid rows of the given splits; train is always among them. Raises: DataError."""
    rows: dict[str, StoredRows] = {}
    faults: list[Fault] = []
    for name in SPLITS:
        file, folder = vars(params)[f"{name}_file_path"], vars(params)[f"{name}_mltable_path"]
        if file or folder:
            try:
                table = read_mltable(folder) if folder else read_table(file)
                rows[name] = task.data.validate(table, params, audits[name])
            except DataError as error:
                faults += error.faults
    if faults:
        raise DataError(*faults)
    if "train" not in rows and params.dataset_name:
        for name, table in read_hub(params.dataset_name, params.dataset_config_name).items():
            if name in SPLITS and name not in rows:
                rows[name] = task.data.validate(table, params, audits[name])
        if "train" not in rows:
            raise DataError(
                Fault(f"data set {params.dataset_name} has no split named train", fix="--train_file_path FILE")
            )
    for name in rows:
        for note in audits[name].notes:
            say(f"{name}: {note}")
    return rows


def split(rows: dict[str, StoredRows], task: "Task[State]") -> tuple[dict[str, StoredRows], str]:
    """Fill the splits that are missing from train: 10% each if both are, else 20%. Groups stay on one side.

    Raises: DataError if there are too few groups to go round.
    """
    missing = [name for name in SPLITS[1:] if name not in rows]
    if not missing:
        return rows, "given"
    share = 0.1 if len(missing) == 2 else 0.2
    train = rows["train"]
    members, begins = grouped(task.data.group(row) for row in train)
    groups = len(begins) - 1
    if groups <= len(missing):
        fix = " ".join(f"--{name}_file_path FILE" for name in missing)
        raise DataError(
            Fault(
                f"{groups} distinct {task.data.grouped_by}s can't be split into train, {', '.join(missing)}",
                fix=f"give {fix}",
            )
        )
    order = array("q", range(groups))
    random.Random(SPLIT_SEED).shuffle(order)

    def places(group: int) -> list[int]:
        return members[begins[group] : begins[group + 1]].tolist()  # type: ignore[no-any-return]

    filled = dict(rows)
    for name in missing:
        taken = array("q")
        while len(taken) < share * len(train) and len(order) > 1:
            taken.extend(places(order.pop()))
        filled[name] = train.chosen(taken)
    filled["train"] = train.chosen(array("q", chain.from_iterable(map(places, order))))
    return filled, f"{share:.0%} of the training rows each for {' and '.join(missing)}, by {task.data.grouped_by}"


def grouped(keys: Iterable[str]) -> tuple["NDArray[np.int64]", "NDArray[np.int64]"]:
    """Return the places of the keys, equal ones together, in the order in which each occurs first; and where the
    places of each begin, with their number behind.
    """
    import numpy as np

    _, first, own = np.unique(hashes(keys), return_index=True, return_inverse=True)
    group = first.argsort().argsort()[own]
    return group.argsort(kind="stable"), np.append(0, np.bincount(group).cumsum())


def with_gold(rows: StoredRows, task: "Task[State]", audit: Audit) -> StoredRows:
    """Return only the rows that can be learnt from or scored; the others are counted."""
    golden = array("q")
    for place, row in enumerate(rows):
        if task.data.has_gold(row):
            golden.append(place)
        else:
            audit.add("dropped", f"no {task.data.gold}", row["row"])
    return rows.chosen(golden)


def sample(rows: StoredRows, limit: int) -> StoredRows:
    """Return `limit` rows drawn evenly from all of the file, in its order; all if limit is -1."""
    if limit < 0 or limit >= len(rows):
        return rows
    return rows.chosen(sorted(random.Random(SPLIT_SEED).sample(range(len(rows)), limit)))


def refuse_losses(rows: Mapping[str, StoredRows], audits: dict[str, Audit], limit: float, longer: str = "") -> None:
    """Raise DataError if a split has no rows left, or lost too many; for all splits at once.

    `longer` is how windows get longer, "" where they can't.
    """
    faults = []
    for name, kept in rows.items():
        dropped, why = audits[name].dropped, "; ".join(audits[name].lines())
        total, fix = len(kept) + dropped, mending(audits[name], longer)
        if not kept:
            faults.append(Fault("no usable row is left", where=name, why=why, fix=fix))
        elif dropped / total > limit:
            allowed = min(1.0, dropped / total + 0.01)
            fix = f"{fix}, or allow it: --max_dropped_fraction {allowed:.2f}"
            faults.append(Fault(f"{dropped} of {total} rows have to be dropped", where=name, why=why, fix=fix))
    if faults:
        raise DataError(*faults)


def mending(audit: Audit, longer: str, action: str = "dropped") -> str:
    """Return what to do about the rows that were dropped: parameters where these are the cause, else the file."""
    in_file = "mend the file, check the column parameters"
    reasons = [reason for reason, problem in audit.problems.items() if problem["action"] == action]
    fixes = list(dict.fromkeys(audit.fixes.get(reason, in_file) for reason in reasons)) or [in_file]
    if longer and longer not in fixes and fixes != [in_file]:
        fixes.append(longer)
    return ", ".join(fixes)


def refuse_no_windows(windows: int, audit: Audit, longer: str) -> None:
    """Raise DataError if validation, whose rows are kept all the same, has no window."""
    if not windows:
        why, fix = "; ".join(audit.lines()), mending(audit, longer, "kept")
        raise DataError(Fault("no row gives a window", where="validation", why=why, fix=fix))


def write_windows(
    name: str,
    rows: StoredRows,
    task: "Task[State]",
    tokenizer: "PreTrainedTokenizerFast",
    state: "State",
    params: Any,
    audit: Audit,
) -> tuple[StoredRows, int]:
    """Encode one split into its folder. Return the rows kept and the number of windows; without any, write nothing."""
    from finetune.tasks.encoding import encoded
    from finetune.tasks.windows_file import WindowsFile

    kept, owners, tokens, gold = array("q"), array("q"), array("q"), array("q")
    read = 0
    with (
        WindowsFile(Preprocessed.windows_folder(params.output_dir, name)) as file,
        progress(len(rows), f"encode {name}") as bar,
    ):
        for batch, windows in encoded(rows, task, tokenizer, state, params.batch_size):
            left, columns, lengths = _labelled(name, batch, windows, task, state, audit)
            if any(columns.values()):
                owners.extend(read + row for row in windows["row"])
                tokens.extend(int(sum(mask)) for mask in windows["attention_mask"])
                if "row" in columns:
                    columns["row"] = [row + len(kept) for row in columns["row"]]
                file.write(columns)
            kept.extend(read + place for place in left)
            gold.extend(lengths)
            read += len(batch)
            bar.update(len(batch))
    if not file.written:
        return rows.chosen(kept), 0
    if name == "train":
        say_token_lengths(owners, tokens, len(rows) - len(kept), state.max_seq_length)
    for line in task.data.beyond(gold, state):
        say(f"{name}: {line}")
    return rows.chosen(kept), file.written


def say_token_lengths(owners: Sequence[int], tokens: Sequence[int], lost: int, limit: int) -> None:
    """Show how long the training rows are, by the windows that have just been made of them."""
    from finetune.tasks import token_lengths

    for line in token_lengths.describe(token_lengths.of_windows(owners, tokens, lost, limit), limit):
        say(line)


def _labelled(
    name: str, rows: list[Row], windows: "Columns", task: "Task[State]", state: "State", audit: Audit
) -> tuple[Sequence[int], "Columns", list[int]]:
    """Return the places of the rows that stay, their windows with labels, and the tokens of gold where these matter.

    Training drops the rows it can't learn from; validation keeps them, since users will ask them too.
    """
    labels, lost = task.data.label(rows, windows, state)
    lengths = task.data.gold_lengths(windows | labels)
    if name != "train":
        for i, why in sorted(task.data.unanswerable(rows, windows, state).items()):
            audit.add("kept", why, rows[i]["row"], lost[i].fix if i in lost else "")
        return range(len(rows)), windows | labels, lengths
    for i, found in sorted(lost.items()):
        audit.add("dropped", found.reason, rows[i]["row"], found.fix)
    chosen = [i for i, row in enumerate(windows.get("row", [])) if row not in lost]
    columns = {
        key: [values[i] for i in chosen]
        for key, values in (windows | labels).items()
        if key not in task.data.decode_columns
    }
    return [place for place in range(len(rows)) if place not in lost], columns, lengths


def say_derived(
    params: Encoding, task: "Task[State]", state: "State", rows: Mapping[str, StoredRows], model_length: int
) -> None:
    """Print one line for each value that was derived rather than taken."""
    asked = params.max_seq_length
    if asked == -1:
        say(f"max_seq_length: {state.max_seq_length}, the model's maximum")
    elif asked > model_length:
        say(f"max_seq_length: {model_length} instead of {asked}, the model's maximum")
    for line in task.data.derived(params, state, rows):
        say(line)


def report(reports: dict[str, SplitReport], split_source: str) -> None:
    """Print the account of every row."""
    say(f"validation and test: {split_source}")
    for name in SPLITS:
        windows = reports[name].windows
        of_model = f", {windows} windows" if windows else ""
        say(f"{name}: {reports[name].rows_kept} of {reports[name].rows_read} rows{of_model}")
        if reports[name].rows_left_out:
            say(f"  left out {reports[name].rows_left_out}: max_{'train' if name == 'train' else 'eval'}_samples")
        for line in Audit(reports[name].problems).lines():
            say(f"  {line}")


if __name__ == "__main__":
    run_main(main)
