"""Question answering around training: windows of rows, answers of logits, and evaluation as a whole.

The stock ways are those of the public examples (stock.py) and transformers' Trainer. Rows, model and tokenizer are
those of training.py.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.speed import stock
from benchmarks.speed.harness import Case, Meter, Way, Work
from benchmarks.speed.training import BATCH, LENGTHS, PREPARE, QA, finetune

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ROWS = {"preprocessing": 1000, "decoding": 400, "evaluation": 128, "serving": 16}  # in a piece of work


def given(folder: Path, count: int) -> tuple[list[dict[str, Any]], Any]:
    """Return rows of the training split, spread over it, and the tokenizer."""
    from transformers import AutoTokenizer

    from finetune.data.batches import spread
    from finetune.data.folders import Preprocessed, read_rows

    rows = list(read_rows(Preprocessed.rows_file(folder / "data", "train")))
    return spread(rows, count), AutoTokenizer.from_pretrained(folder / "hub")


@cache
def ours() -> tuple[Any, Any]:
    """Return the task, and the state that the defaults of the preprocess component give."""
    from finetune.tasks.question_answering import TASK
    from finetune.tasks.question_answering.windows import State

    state = State(
        max_seq_length=stock.LENGTH,
        doc_stride=stock.STRIDE,
        pad_to_max_length=False,
        n_best_size=stock.N_BEST,
        max_answer_length_in_tokens=stock.LONGEST_ANSWER,
        no_answer=False,
    )
    return TASK, state


def mapped(rows: Sequence[dict[str, Any]], tokenizer: Any, folder: str, pad: bool) -> tuple[Any, Any]:
    """Return rows and windows as datasets, whose cache lies in the folder."""
    from datasets import Dataset

    columns = ("id", "question", "context", "answers")
    data = Dataset.from_list([{name: row[name] for name in columns} for row in rows])
    make = partial(stock.windows, tokenizer=tokenizer, pad=pad)
    cache_file = f"{folder}/windows.arrow"
    return data, data.map(make, batched=True, remove_columns=data.column_names, cache_file_name=cache_file)


def preprocess_stock(folder: Path, meter: Meter, *, pad: bool) -> None:
    rows, tokenizer = given(folder, ROWS["preprocessing"])
    while True:
        with tempfile.TemporaryDirectory() as cached:
            _, windows = mapped(rows, tokenizer, cached, pad)
            meter.done(Work(len(windows)))


def preprocess_ours(folder: Path, meter: Meter) -> None:
    """Encode, label, look for rows that can't be learnt from, and write, as the preprocess component does."""
    from finetune.tasks.encoding import encoded
    from finetune.tasks.windows_file import WindowsFile

    rows, tokenizer = given(folder, ROWS["preprocessing"])
    task, state = ours()
    while True:
        with tempfile.TemporaryDirectory() as cached, WindowsFile(Path(cached) / "windows") as file:
            for part, columns in encoded(rows, task, tokenizer, state, 1000):
                labels, _lost = task.data.label(part, columns, state)
                kept = {name: of for name, of in columns.items() if name not in task.data.decode_columns}
                file.write(kept | labels)
        meter.done(Work(file.written))


def logits(count: int) -> Iterator[np.ndarray]:
    """Yield start and end logits (count, L), the same in each process."""
    draws = np.random.default_rng(0)
    for _ in range(2):
        yield draws.normal(scale=3.0, size=(count, stock.LENGTH)).astype(np.float32)


def answers_of_stock(folder: Path) -> Callable[[], dict[str, str]]:
    rows, tokenizer = given(folder, ROWS["decoding"])
    data, windows = mapped(rows, tokenizer, str(folder / "stock"), pad=True)
    start, end = logits(len(windows))
    return lambda: stock.answers(data, windows, start, end)


def answers_of_ours(folder: Path) -> Callable[[], dict[str, str]]:
    import torch

    from finetune.data.batches import as_windows, collate, concatenated

    rows, tokenizer = given(folder, ROWS["decoding"])
    task, state = ours()
    windows = as_windows(task.data.encode(rows, tokenizer, state))
    both = [torch.from_numpy(one) for one in logits(len(windows))]
    batches = []
    for i in range(0, len(windows), BATCH):
        batch = collate(windows[i : i + BATCH], task.data.padding(tokenizer))
        width = batch["input_ids"].shape[1]
        start, end = (one[i : i + BATCH, :width] for one in both)
        batches.append(({"start_logits": start, "end_logits": end}, batch))

    def answers() -> dict[str, str]:
        from finetune.tasks.question_answering import spans

        reduced = concatenated([spans.reduce(outputs, batch, state) for outputs, batch in batches])
        arrays = {name: tensor.numpy() for name, tensor in reduced.items()}
        found = spans.decode(arrays, rows, state)
        return {row["id"]: prediction["text"] for row, prediction in zip(rows, found, strict=True)}

    return answers


def decode(make: Callable[[Path], Callable[[], dict[str, str]]], folder: Path, meter: Meter) -> None:
    answers = make(folder)
    while True:
        meter.done(Work(len(answers())))


def evaluate_stock(folder: Path, meter: Meter, *, pad: bool) -> None:
    """Make windows, predict with the Trainer, find the answers and score them."""
    import transformers

    from finetune.tasks.question_answering.questions import measured

    rows, tokenizer = given(folder, ROWS["evaluation"])
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "stock"),
        per_device_eval_batch_size=BATCH,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    collate: Any = transformers.default_data_collator if pad else transformers.DataCollatorWithPadding(tokenizer)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder / "hub")
    trainer = transformers.Trainer(model=model, args=arguments, data_collator=collate)
    while True:
        with tempfile.TemporaryDirectory() as cached:
            data, windows = mapped(rows, tokenizer, cached, pad)
            start, end = trainer.predict(windows.select_columns(list(INPUTS))).predictions
            found = stock.answers(data, windows, start, end)
        measured([{"text": found[row["id"]], "span_text": found[row["id"]], "null_score": 0.0} for row in rows], rows)
        meter.done(Work(len(rows)))


def evaluate_ours(folder: Path, meter: Meter) -> None:
    from finetune.models.loading import load_model
    from finetune.models.prediction import predict_rows

    rows, tokenizer = given(folder, ROWS["evaluation"])
    task, state = ours()
    model, _ = load_model(folder / "hub", task, state)
    while True:
        task.scoring.metrics(predict_rows(model, tokenizer, rows, task, state, BATCH), rows, state)
        meter.done(Work(len(rows)))


def serve_stock(folder: Path, meter: Meter, *, pad: bool) -> None:
    """Answer one question after another: windows, a forward pass, the loop."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForQuestionAnswering

    rows, tokenizer = given(folder, ROWS["serving"])
    model = AutoModelForQuestionAnswering.from_pretrained(folder / "hub").eval()
    while True:
        for row in rows:
            windows = stock.windows({name: [value] for name, value in row.items()}, tokenizer, pad)
            inputs = tokenizer.pad({name: windows[name] for name in INPUTS}, return_tensors="pt")
            with torch.inference_mode():
                outputs = model(**inputs)
            start, end = (one.numpy() for one in (outputs.start_logits, outputs.end_logits))
            stock.answers([row], Dataset.from_dict(windows), start, end)
        meter.done(Work(len(rows)))


def prepare_served(folder: Path) -> None:
    """Write the MLflow model of a run besides: trained by the process of a way, it would count as memory of that."""
    PREPARE[QA](folder)
    ports = {"preprocess_output": folder / "data", "model_selector_output": folder / "model"}
    ports |= {f"{kind}_model_folder": folder / "served" / kind for kind in ("pytorch", "mlflow")}
    finetune("run", QA, **ports, max_steps=1, per_device_train_batch_size=1)


def serve_ours(folder: Path, meter: Meter) -> None:
    """Ask the MLflow model of a run, in this process."""
    import mlflow

    model = mlflow.pyfunc.load_model(str(folder / "served" / "mlflow"))
    rows, _ = given(folder, ROWS["serving"])
    while True:
        for row in rows:
            model.predict([{name: row[name] for name in ("question", "context")}])
        meter.done(Work(len(rows)))


def case(name: str, what: str, prepare: Callable[[Path], None] = PREPARE[QA], **ways: Way) -> Case:
    about = f"{what}; {ROWS[name]} windows at a time, as long as those of SQuAD v1.1"
    baselines = tuple(way for way in ways if way != "finetune")
    return Case(f"{name}_{QA}", about, prepare, mean(LENGTHS[QA]), ways, baselines)


Each = partial(Way, goes_with="windows", warm_up=1)  # a piece is always the same windows
CASES = [
    case(
        "preprocessing",
        "rows become windows with labels, in a file",
        stock=Each("Dataset.map, all windows padded to 384", partial(preprocess_stock, pad=True)),
        tuned=Each("Dataset.map, without padding", partial(preprocess_stock, pad=False)),
        finetune=Each("as the preprocess component", preprocess_ours),
    ),
    case(
        "decoding",
        f"logits become answers, {stock.N_BEST} best spans of {stock.LONGEST_ANSWER} tokens at most",
        stock=Each("a loop over pairs of starts and ends", partial(decode, answers_of_stock)),
        finetune=Each("all windows of a batch at once, exactly", partial(decode, answers_of_ours)),
    ),
    case(
        "evaluation",
        f"rows become scores, {BATCH} windows in a batch, fp32",
        stock=Each("Dataset.map, Trainer.predict, the loop; padded to 384", partial(evaluate_stock, pad=True)),
        tuned=Each("the same, each batch padded to its longest", partial(evaluate_stock, pad=False)),
        finetune=Each("as the evaluation component", evaluate_ours),
    ),
    case(
        "serving",
        "requests of one question become answers, one after another, fp32",
        prepare_served,
        stock=Each("a window padded to 384, a forward pass, the loop", partial(serve_stock, pad=True)),
        tuned=Each("the same without padding", partial(serve_stock, pad=False)),
        finetune=Each("the MLflow model of a run", serve_ours),
    ),
]
