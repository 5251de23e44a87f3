"""The demo: run the pipeline YAML of a task on its bundled sample, and show what the model learnt.

Tasks that read begin with all-MiniLM-L6-v2. No model that writes can be had without a hub: `scratch_model` makes one.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from finetune import evaluation, pipeline
from finetune.core.console import quiet_libraries, say
from finetune.data.folders import read_rows
from finetune.data.table import Row
from finetune.tasks import load_task

ROOT = Path(__file__).resolve().parents[1]
MINILM = ROOT / "models" / "all-MiniLM-L6-v2"
SETTINGS = {
    "question_answering": {
        "max_seq_length": "256",
        "per_device_train_batch_size": "8",
        "per_device_eval_batch_size": "16",
        "num_train_epochs": "3",
        "learning_rate": "2e-4",
        "warmup_steps": "16",
        "logging_strategy": "steps",
        "logging_steps": "27",
        "metric_for_best_model": "f1",
    },
    "generative_question_answering": {
        "max_seq_length": "72",
        "doc_stride": "24",
        "max_answer_length": "16",
        "prompt_template": "{question} {context}",
        "per_device_train_batch_size": "32",
        "per_device_eval_batch_size": "64",
        "num_train_epochs": "6",
        "learning_rate": "1e-3",
        "warmup_steps": "100",
        "adam_beta2": "0.98",
        "attn_implementation": "eager",
        "evaluation_strategy": "steps",
        "eval_steps": "500",
        "logging_strategy": "steps",
        "logging_steps": "250",
        "metric_for_best_model": "f1",
    },
    "token_classification": {
        "max_seq_length": "128",
        "per_device_train_batch_size": "8",
        "per_device_eval_batch_size": "16",
        "num_train_epochs": "5",
        "learning_rate": "3e-4",
        "warmup_steps": "20",
        "logging_strategy": "steps",
        "logging_steps": "30",
        "metric_for_best_model": "f1",
    },
    "translation": {
        "source_lang": "en",
        "target_lang": "tav",
        "max_target_length": "40",
        "per_device_train_batch_size": "32",
        "per_device_eval_batch_size": "64",
        "num_train_epochs": "4",
        "learning_rate": "2e-3",
        "warmup_steps": "100",
        "adam_beta2": "0.98",
        "label_smoothing_factor": "0.1",
        "attn_implementation": "eager",
        "logging_strategy": "steps",
        "logging_steps": "125",
        "metric_for_best_model": "bleu",
    },
}
SHOWN = 4
SPLITS = ("train", "validation", "test")


class Scratch(NamedTuple):
    """A demo whose model is made here, from a config and the training rows."""

    texts: Callable[[Row], list[str]]  # of a row of the sample; they make the vocabulary
    vocabulary: int  # word pieces
    longest: int  # tokens of a text
    about: str  # the data, and what of them is held out
    gold: Callable[[Row], str]  # of a row that preprocess wrote
    elsewhere: dict[str, str]  # the parameters for a pretrained model of the hub


SCRATCH = {
    "translation": Scratch(
        texts=lambda row: [row["en"], row["tav"]],
        vocabulary=600,
        longest=64,
        about="English to Tavi, a language of 74 words that this project made up (examples/translation/language.py).\n"
        "Held out: in each test sentence stand an adjective and a noun, or a verb and its object, that never stand\n"
        "together in a training sentence. Word order, endings and agreement have to be learnt to translate them.",
        gold=lambda row: str(row["target"]),
        elsewhere={
            "huggingface_id": "t5-small",
            "source_lang": "en",
            "target_lang": "tav",
            "learning_rate": "3e-4",
            "num_train_epochs": "5",
            "per_device_train_batch_size": "32",
            "metric_for_best_model": "bleu",
        },
    ),
    "generative_question_answering": Scratch(
        texts=lambda row: [row["question"], row["context"], *row["answers"]["text"]],
        vocabulary=600,
        longest=192,
        about="What is told of a person, and questions about it "
        "(examples/generative_question_answering/people.py).\n"
        "Held out: what a test question asks of a person is told of her in no training row. Some answers have to be\n"
        "written, as yes, no and numbers in words; a fifth of the questions has none.",
        gold=lambda row: next(iter(row["answers"]["text"]), ""),
        elsewhere={
            "huggingface_id": "t5-small",
            "learning_rate": "3e-4",
            "num_train_epochs": "3",
            "per_device_train_batch_size": "32",
            "metric_for_best_model": "f1",
        },
    ),
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "question_answering"
    if name not in SETTINGS:
        sys.exit(f"no demo for {name!r}; there is one for: {', '.join(SETTINGS)}")
    quiet_libraries()
    output, sample = ROOT / "out" / f"demo_{name}", ROOT / "examples" / name
    files = {f"{split}_file_path": str(sample / f"{split}.jsonl") for split in SPLITS}
    model, about = base_model(name, sample)
    values = {**files, "pytorch_model_path": str(model), "precision": precision(), **SETTINGS[name]}
    say(f"--- {about}\n")

    done = pipeline.run(pipeline.Words(ROOT / "components" / name / "pipeline.yaml", output, values, force=False))
    started = time.perf_counter()
    say("\n--- the base model on the same held-out rows, for comparison")
    data, imported = (output / "steps" / f"{name}_{step}/output_dir" for step in ("datapreprocess", "model_import"))
    base = ["--task", name, "--preprocess_output", str(data), "--pytorch_model_folder", str(imported / "model")]
    evaluation.main([*base, "--evaluation_result", str(output / "base_evaluation")])
    seconds = time.perf_counter() - started

    show_answers(name, read_rows(data / "test" / "rows.jsonl"), output)
    show_scores(name, output)
    say(f"\nbase       {about}")
    say(f"device     {device()}, precision {values['precision']}")
    for item in done:
        say(f"{item.seconds:6.1f} s   {item.step}{' (unchanged, skipped)' if item.status == 'unchanged' else ''}")
    say(f"{seconds:6.1f} s   base model, for comparison")
    say(f"\nmodel      {output / 'pytorch_model_folder'}\nMLflow     {output / 'mlflow_model_folder'}")
    say(f"curves     mlflow ui --backend-store-uri sqlite:///{output}/mlflow.db")
    if name in SCRATCH:
        say(f"\nThe same with a pretrained model, where a hub can be reached:\n{command_with_hub(name)}")


def show_answers(name: str, rows: list[Row], output: Path) -> None:
    """Print some rows of test with what the finetuned model says to them, and whether what it wrote is right."""
    predictions, show = read_rows(output / "evaluation_result" / "predictions.jsonl"), load_task(name).report.show
    marked = "" if name in SCRATCH else ", marked [[ ]] in their text"
    say(f"\n--- some of what it says to rows that it never saw{marked}")
    for i in range(0, len(rows), -(-len(rows) // SHOWN)):
        verdict = ""
        if name in SCRATCH:
            gold = SCRATCH[name].gold(rows[i])
            verdict = " (right)" if predictions[i]["text"] == gold else f" (wrong)\n     {gold or '(no answer)'}"
        say(f"{show(predictions[i], rows[i])}{verdict}\n")
    say(f"--- {len(rows)} held-out rows")


def show_scores(name: str, output: Path) -> None:
    """Print the metrics of the base model and the finetuned one, in percent."""
    scoring = load_task(name).scoring
    say(f"{'':12}{''.join(f'{metric:>11}' for metric in scoring.hub_metrics)}")
    for label, folder in (("base", "base_evaluation"), ("finetuned", "evaluation_result")):
        metrics = json.loads((output / folder / "metrics.json").read_text())
        shown = [f"{metrics[metric] * 100 / scoring.full_score:11.1f}" for metric in scoring.hub_metrics]
        say(f"{label:12}{''.join(shown)}")


def base_model(name: str, sample: Path) -> tuple[Path, str]:
    """Return the folder of the model that training begins with, and what to say of it."""
    if name not in SCRATCH:
        return MINILM, "a pretrained all-MiniLM-L6-v2, whose head for the task has random weights"
    from scratch_model import make_model, make_tokenizer

    made, folder = SCRATCH[name], ROOT / "out" / f"scratch_{name}"
    texts = [text for row in read_rows(sample / "train.jsonl") for text in made.texts(row)]
    weights = make_model(folder, make_tokenizer(texts, made.vocabulary, made.longest))
    return folder, f"{weights / 1e6:.1f} million random weights: a small Marian made from a config.\n{made.about}"


def command_with_hub(name: str) -> str:
    """Return what to type to train a pretrained model on the same rows."""
    given = {f"{split}_file_path": f"examples/{name}/{split}.jsonl" for split in SPLITS}
    words = [f"{key}={value}" for key, value in (SCRATCH[name].elsewhere | given).items()]
    return " \\\n    ".join([f"finetune pipeline components/{name}/pipeline.yaml --output out/{name} --set", *words])


def precision() -> str:
    """bf16 where the processor or GPU computes in it, else 32 bits."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "32"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    return "bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "32"


def device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
