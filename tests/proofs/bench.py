"""Where proofs are run: prepared data and models of each task, and the four components on them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from finetune import evaluation, model_selector, preprocess, run
from finetune.params.components import TASKS
from finetune.tasks.token_classification.rows import places_of
from finetune.tasks.token_classification.schemes import entities
from tests.conftest import ROOT, build_tiny_model, sample_rows, write_jsonl
from tests.proofs.recorder import Run, record
from tests.proofs.table import GQ, LONGEST_ANSWER, SPANS, WRITING, columns_of
from tests.writers import build_writer

COMPONENTS = {"model_import": model_selector, "datapreprocess": preprocess, "finetune": run, "evaluation": evaluation}
SPLITS = {"train": (0, 48), "validation": (48, 60), "test": (60, 72)}  # first and last row of the sample
OTHER = (72, 84)
# In batches of 8 the 48 rows are six steps, as every row of the sample is one window of the tiny model.
LANGUAGES = {"translation": {"source_lang": "en", "target_lang": "tav"}}
# What an untrained model writes has no end but this one; the sample's pairs are shorter.
LENGTHS = {"translation": {"max_target_length": 48}, GQ: {"max_answer_length": LONGEST_ANSWER}}
WRITERS: dict[str, dict[str, int]] = {"writer": {}, "other_writer": {"d_ff": 48}}
TRAINING = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "learning_rate": 1e-3,
}


class Bench:
    """Runs components, each base once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        readers = [self.tiny_model("one"), self.tiny_model("other", intermediate_size=48)]
        writers = [build_writer("t5", folder / name, **size) for name, size in WRITERS.items()]
        self.models = {task: writers if task in WRITING else readers for task in TASKS}
        self.bases: dict[Any, Run] = {}
        self.count = 0
        for task in TASKS:
            self.write_files(task)

    def tiny_model(self, name: str, **config: Any) -> Path:
        (self.folder / name).mkdir()
        return build_tiny_model(self.folder / name, max_position_embeddings=256, **config)

    def write_files(self, task: str) -> None:
        """The sample's rows: as splits, with one column renamed, as an MLTable, as a data set of two configurations."""
        folder = self.folder / task
        folder.mkdir()
        rows = {name: task_rows(task, *span) for name, span in {**SPLITS, "other": OTHER}.items()}
        for name, part in rows.items():
            write_jsonl(folder / f"{name}.jsonl", part)
        of_words = task == "token_classification"
        texts = {name: [with_spans(row) for row in part] for name, part in rows.items() if of_words}
        (folder / "spans").mkdir()
        for name, part in texts.items():
            write_jsonl(folder / "spans" / f"{name}.jsonl", part)
        for parameter, column in columns_of(task).items():
            (folder / parameter).mkdir()
            for name, part in (texts if parameter in SPANS else rows).items():
                write_jsonl(folder / parameter / f"{name}.jsonl", [renamed(row, column) for row in part])
        shutil.copy(ROOT / "configs" / "deepspeed" / "zero2.json", folder)
        (folder / "evaluation_config.json").write_text('{"metrics": ["exact_match", "f1_score_macro", "bleu_1"]}')
        broken = [dict.fromkeys(row) if i % 4 == 0 else row for i, row in enumerate(rows["train"])]
        write_jsonl(folder / "broken.jsonl", broken)
        (folder / "MLTable").write_text("paths:\n  - file: ./other.jsonl\ntransformations:\n  - read_json_lines\n")
        if task == GQ:
            (folder / "flat").mkdir()
            for name, part in rows.items():
                write_jsonl(folder / "flat" / f"{name}.jsonl", [in_columns(row) for row in part])
        if task in WRITING:
            write_half(self.models[task][0], folder / "half")
        (folder / "hub").mkdir()
        configs = [("default", "train"), ("second", "other")]
        for _, name in configs:
            write_jsonl(folder / "hub" / f"{name}.jsonl", rows[name])
        lines = [f"- config_name: {config}\n  data_files: {name}.jsonl\n" for config, name in configs]
        (folder / "hub" / "README.md").write_text(f"---\nconfigs:\n{''.join(lines)}---\n")

    def base(self, component: str, task: str, words: Mapping[str, Any]) -> Run:
        """A run that others are compared with, or build on."""
        key = component, task, tuple(sorted(words.items()))
        if key not in self.bases:
            found = self.bases[key] = self.run(component, task, words)
            assert found.exit_code == 0, found.errors
        return self.bases[key]

    def run(self, component: str, task: str, words: Mapping[str, Any]) -> Run:
        """With these words in place of, or besides, those that every run of the component has; None leaves one out.

        {files}, {other_model}, {imported}, {trained} in a word are the folders of this bench.
        """
        self.count += 1
        output = self.folder / str(self.count)
        typed = {"task": task, **self.ports(component, task, output), **words}
        shown = {name: self.placed(str(value), task) for name, value in typed.items() if value is not None}
        argv = [word for name, value in shown.items() for word in (f"--{name}", value)]
        return record(COMPONENTS[component].main, argv, shown, output)

    def placed(self, text: str, task: str) -> str:
        for name, find in (
            ("{files}", lambda: self.folder / task),
            ("{other_model}", lambda: self.models[task][1]),
            ("{imported}", lambda: self.base("model_import", task, {}).folder),
            ("{trained}", lambda: self.base("finetune", task, {}).output),
        ):
            if name in text:
                text = text.replace(name, str(find()))
        return text

    def ports(self, component: str, task: str, output: Path) -> dict[str, Any]:
        """What has to be given, and small batches."""
        first = output / "first"
        if component == "model_import":
            return {"pytorch_model_path": self.models[task][0], "output_dir": first}
        if component == "datapreprocess":
            files = {f"{name}_file_path": f"{{files}}/{name}.jsonl" for name in SPLITS}
            return {
                "model_selector_output": "{imported}",
                "output_dir": first,
                **files,
                **LANGUAGES.get(task, {}),
                **LENGTHS.get(task, {}),
            }
        data = self.base("datapreprocess", task, {}).folder
        if component == "evaluation":
            model = {"pytorch_model_folder": "{trained}/first"}
            words = {**model, "evaluation_result": first, "per_device_eval_batch_size": 4, **LANGUAGES.get(task, {})}
            return {"preprocess_output": data, **words}
        outputs = {"pytorch_model_folder": first, "mlflow_model_folder": output / "mlflow"}
        return {"preprocess_output": data, "model_selector_output": "{imported}", **outputs, **TRAINING}


def write_half(model: Path, folder: Path) -> None:
    """The model without its decoder, which then starts at random."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    half = {name: tensor for name, tensor in weights.items() if not name.startswith("decoder.")}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})


def task_rows(task: str, first: int, last: int) -> list[dict[str, Any]]:
    """Of the sample; every fourth question has no answer."""
    rows = [json.loads(json.dumps(row)) for row in sample_rows("train", task)[first:last]]
    for row in rows[::4] if task.endswith("question_answering") else ():
        row["answers"] = {"text": [], "answer_start": []}
    return rows


def in_columns(row: dict[str, Any]) -> dict[str, Any]:
    """A row of texts, with the place -1 where there is no answer."""
    text = next(iter(row["answers"]["text"]), "")
    return {"question": row["question"], "context": row["context"], "answer_text": text, "place": 0 if text else -1}


def with_spans(row: dict[str, Any]) -> dict[str, Any]:
    """The text of a row of words, and the spans of its entities."""
    placed = places_of({"text": None, **row})
    found = [[placed[e.first][0], placed[e.last][1], e.type] for e in entities(row["ner_tags"], "IOB2")]
    return {"text": " ".join(row["tokens"]), "entities": found}


def renamed(row: dict[str, Any], name: str) -> dict[str, Any]:
    """With the column, or the key inside its answers, named other_…"""
    inner = {k: renamed(v, name) if isinstance(v, dict) else v for k, v in row.items()}
    return {f"other_{k}" if k == name else k: v for k, v in inner.items()}
