"""Training of a BERT of MiniLM's shape for two tasks: stock recipes of transformers' Trainer, and `finetune run`.

Weights are random and words are made up, which changes no time; windows are as long as those of SQuAD v1.1 (at most 384
tokens, doc_stride 128) and of WNUT-17. lengths.json has 400 lengths of each, at equal ranks of all windows.
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.speed.harness import ROOT, Case, Meter, Way, Work
from benchmarks.speed.machine import PEAKS, multiplies_bf16

QA, TC = "question_answering", "token_classification"
LENGTHS: dict[str, list[int]] = json.loads((Path(__file__).with_name("lengths.json")).read_text())
WINDOWS = 2000
BATCH = 16
LONGEST = {QA: 384, TC: 128}  # tokens that the stock recipe pads to
QUESTION = 12  # tokens, the median of SQuAD
WORDS = 30_000  # of the vocabulary, each a token
SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
TAGS = ("O", "B-person", "I-person", "B-place")
FOREVER = 1_000_000  # steps: the meter ends it


def prepare(task: str, folder: Path, shape: Mapping[str, int] = SHAPE) -> None:
    """Write a BERT of the shape and rows, and let `finetune` import and encode them."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    (folder / "hub").mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(WORDS))]
    (folder / "hub" / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(folder / "hub" / "vocab.txt")).save_pretrained(folder / "hub")
    BertModel(BertConfig(vocab_size=len(vocabulary), **shape)).save_pretrained(folder / "hub")
    draws = random.Random(1)
    lengths = draws.sample(LENGTHS[task] * (WINDOWS // len(LENGTHS[task])), WINDOWS)
    rows = {"train": lengths, "validation": lengths[:8], "test": lengths[:8]}
    for split, chosen in rows.items():
        lines = [json.dumps(row(task, f"{split}-{i}", length, draws)) for i, length in enumerate(chosen)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    files = {f"{split}_file_path": folder / f"{split}.jsonl" for split in rows}
    finetune("model_selector", task, pytorch_model_path=folder / "hub", output_dir=folder / "model")
    given = {"model_selector_output": folder / "model", "max_seq_length": LONGEST[task], **files}
    finetune("preprocess", task, **given, output_dir=folder / "data")


def row(task: str, name: str, length: int, draws: random.Random) -> dict[str, Any]:
    """Return a row that becomes one window of this length."""

    def words(count: int) -> list[str]:
        return [f"w{draws.randrange(WORDS)}" for _ in range(count)]

    if task == TC:
        chosen = words(length - 2)
        return {"tokens": chosen, "ner_tags": [draws.choice(TAGS) for _ in chosen]}
    context = words(length - QUESTION - 3)
    answers = {"text": [context[0]], "answer_start": [0]}
    return {"id": name, "question": " ".join(words(QUESTION)), "context": " ".join(context), "answers": answers}


def finetune(module: str, task: str, **given: Any) -> None:
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", f"finetune.{module}", "--task", task, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def counting(meter: Meter) -> Any:
    """Return a callback that tells the meter what each step did."""
    from transformers import TrainerCallback

    class Counting(TrainerCallback):
        work = Work()

        def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
            model.register_forward_pre_hook(self.count, with_kwargs=True)

        def count(self, model: Any, _: object, inputs: dict[str, Any]) -> None:
            free = "cu_seq_lens_q" in inputs  # padding_free
            lengths = inputs["cu_seq_lens_q"].diff() if free else inputs["attention_mask"].sum(1)
            of_body = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embedding" not in name)
            attention = 2 * SHAPE["num_hidden_layers"] * SHAPE["hidden_size"] * int((lengths**2).sum())
            # Two operations for each weight and token, and as many again for each of two gradients.
            operations = 6.0 * (of_body * int(lengths.sum()) + attention)
            self.work += Work(len(lengths), int(lengths.sum()), operations)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.work, done = Work(), self.work
            meter.done(done)

    return Counting()


def stock(task: str, folder: Path, meter: Meter, *, tuned: bool, bf16: bool) -> None:
    """Train with transformers' own Trainer, loss and collators on the same windows."""
    import transformers
    from datasets import load_from_disk

    loaded = transformers.AutoTokenizer.from_pretrained(folder / "hub")
    columns = ["input_ids", "attention_mask", "token_type_ids"]
    columns += ["labels"] if task == TC else ["start_positions", "end_positions"]
    windows = load_from_disk(folder / "data" / "train" / "windows").select_columns(columns)
    collate: Any = transformers.default_data_collator
    if not tuned:
        windows = windows.map(partial(padded, LONGEST[task]))
    elif task == TC:
        collate = transformers.DataCollatorForTokenClassification(loaded)
    else:
        collate = transformers.DataCollatorWithPadding(loaded)
    kind = {QA: transformers.AutoModelForQuestionAnswering, TC: transformers.AutoModelForTokenClassification}[task]
    model = kind.from_pretrained(folder / "hub", **({"num_labels": len(TAGS)} if task == TC else {}))
    recipe = {"train_sampling_strategy": "group_by_length", "bf16": bf16, "optim": "adamw_torch_fused"}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "stock"),
        max_steps=FOREVER,
        per_device_train_batch_size=BATCH,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **(recipe if tuned else {}),
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=windows, data_collator=collate)
    trainer.add_callback(counting(meter))
    trainer.train()


def padded(length: int, window: dict[str, Any]) -> dict[str, Any]:
    """Return a window padded to the length, as `padding="max_length"` does it."""
    fills = {"labels": -100}
    lists = {name: values for name, values in window.items() if isinstance(values, list)}
    return {name: values + [fills.get(name, 0)] * (length - len(values)) for name, values in lists.items()}


def ours(task: str, given: dict[str, str], folder: Path, meter: Meter) -> None:
    """Train by the command line, with a callback that counts."""
    from finetune import run
    from finetune.training import arguments

    before: Callable[..., list[Any]] = arguments.callbacks
    arguments.callbacks = lambda *those: [*before(*those), counting(meter)]
    output = folder / "-".join(["finetune", *given.values()])
    ports = {"preprocess_output": folder / "data", "model_selector_output": folder / "model"}
    ports |= {"pytorch_model_folder": output / "pytorch", "mlflow_model_folder": output / "mlflow"}
    steps = {"max_steps": FOREVER, "evaluation_strategy": "steps", "eval_steps": FOREVER}
    words = {**ports, **steps, "per_device_train_batch_size": BATCH, **given}
    run.main(["--task", task, *(word for name, value in words.items() for word in (f"--{name}", str(value)))])


def ways(task: str) -> dict[str, Way]:
    """Return the ways of a task, by name."""
    alike = partial(stock, task, tuned=True)
    own = partial(ours, task)
    every = f"transformers' Trainer, all windows padded to {LONGEST[task]} tokens, fp32"
    return {
        "stock": Way(every, partial(stock, task, tuned=False, bf16=False), goes_with="windows"),
        "tuned fp32": Way("transformers' Trainer, grouped by length, fused AdamW", partial(alike, bf16=False)),
        "tuned bf16": Way("the same with bf16", partial(alike, bf16=True), here=multiplies_bf16),
        "without kernels": Way("finetune run, cpu_kernels false, fp32", partial(own, {"cpu_kernels": "false"})),
        **(
            {"padding free": Way("finetune run, padding_free always, fp32", partial(own, {"padding_free": "always"}))}
            if task == QA
            else {}
        ),
        "finetune fp32": Way("finetune run, fp32", partial(own, {})),
        "finetune bf16": Way("finetune run, precision bf16", partial(own, {"precision": "bf16"}), here=multiplies_bf16),
        **PEAKS,
    }


PREPARE = {task: partial(prepare, task) for task in (QA, TC)}
CASES = [
    Case(
        name=f"training_{task}",
        what=f"windows as long as those of {data}, {mean(LENGTHS[task]):.0f} tokens on average, {BATCH} in a step",
        prepare=PREPARE[task],
        tokens=mean(LENGTHS[task]),
        ways=ways(task),
        baselines=("stock", "tuned fp32", "tuned bf16"),
    )
    for task, data in ((QA, "SQuAD v1.1"), (TC, "WNUT-17"))
]
