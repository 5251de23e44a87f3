"""Every family through the command line: import, preprocess, train, save, reload, evaluate, import again.

One test for each cell of the table in docs/families.md; `python -m tests.models.test_families` writes it if all pass.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from finetune import evaluation, model_selector, run
from finetune.data.folders import Preprocessed, SelectedModel, read_rows
from finetune.models.adapt.lora import TARGETS, targets
from finetune.models.head import head_parameters
from finetune.models.loading import load_model
from finetune.models.prediction import predict_rows
from finetune.models.stored.configs import load_config, stored_state
from finetune.models.stored.intact import BASE_MODEL, mlflow_weights
from finetune.models.stored.tokenizers import load_tokenizer
from finetune.results.proof import _different
from finetune.tasks import load_task
from finetune.tasks.task import Task
from finetune.tasks.tokenizers import before_words
from tests.conftest import ROOT, finetune_words, prepare, sample_rows
from tests.families import FAMILIES, OTHERS, build_family
from tests.writers import WRITERS, build_writer

PAGE = ROOT / "docs" / "families.md"
TASKS = {
    "question_answering": {"max_seq_length": 64, "doc_stride": 16},
    "token_classification": {"max_seq_length": 48},
}
WRITTEN = {"target_key": "tav", "source_key": "en"}  # translation
LORA = {"apply_lora": "true", "lora_r": 4, "lora_alpha": 16}
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA, merged": LORA,
    "LoRA, unmerged": {**LORA, "merge_lora_weights": "false"},
}
STEPS = {
    "max_steps": 8, "evaluation_strategy": "steps", "eval_steps": 8, "logging_strategy": "steps", "logging_steps": 1,
    "learning_rate": 5e-3, "per_device_train_batch_size": 512,  # all windows, so that losses can be compared
}  # fmt: skip
INPUTS = {"input_ids": torch.arange(20, 44).reshape(2, 12), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
DECODED = {"decoder_input_ids": torch.arange(21, 45).reshape(2, 12)}  # of a model that writes
LABELS = ["B-DATE", "B-LOC", "B-ORG", "B-PER", "I-DATE", "I-LOC", "I-ORG", "I-PER", "O"]
CELLS = [(family, task, way) for family in (*FAMILIES, *OTHERS) for task in TASKS for way in WAYS]
CELLS += [(family, "translation", way) for family in WRITERS for way in WAYS]
ANSWERED = {"max_seq_length": 130, "doc_stride": 16, "max_answer_length": 45}  # generative_question_answering
READERS, DECODERS = ("bart", "mbart", "nllb", "t5"), ("gpt2", "llama", "mistral", "qwen2")
CELLS += [(family, "generative_question_answering", way) for family in (*READERS, *DECODERS) for way in WAYS]

# Each kind of family once by default, of the tasks and the ways one in turn; the thorough tier has all cells.
KIN = {"camembert", "xlm-roberta", "deberta-v2", "mistral", "qwen2", "gpt_neo"}  # of roberta, deberta-v3, llama, gpt2
KIN_WRITERS = {"byt5", "bart", "mbart50", "m2m_100"}  # of t5, marian, mbart, nllb
DEFAULT = {(f, (*TASKS,)[i % 2], (*WAYS,)[i % 3]) for i, f in enumerate((*FAMILIES, *OTHERS)) if f not in KIN}
DEFAULT |= {(f, "translation", (*WAYS,)[i % 3]) for i, f in enumerate(WRITERS) if f not in KIN_WRITERS}
DEFAULT |= {("llama", "generative_question_answering", "LoRA, unmerged")}
IN_TURN = [
    pytest.param(*cell, id="-".join(cell), marks=[] if cell in DEFAULT else [pytest.mark.thorough]) for cell in CELLS
]

OWN_HEAD = {("bart", "token_classification"), ("mbart", "token_classification")}  # transformers has none
SCORED = ("bert", "gpt2", "t5", "mbart")  # families whose two folders are evaluated besides


@pytest.fixture(scope="module")
def plain_transformers() -> Iterator["subprocess.Popen[str]"]:
    """A process in which this package can't be imported: a line for each folder to load, a line with what it found."""
    process = subprocess.Popen(
        [sys.executable, "-c", PLAIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def prepared_for(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(family, task) -> the outputs of import and preprocess."""

    @cache
    def folder(family: str, task: str) -> Path:
        made = tmp_path_factory.mktemp(f"{family}-{task}")
        (made / "tiny").mkdir()
        if task == "translation":
            given = WRITTEN | dict(zip(("source_lang", "target_lang"), WRITERS[family][2], strict=True))
            given |= dict.fromkeys(("max_seq_length", "max_target_length"), 150 if family == "byt5" else 60)
            return prepare(made, build_writer(family, made / "tiny"), task, (24, 6, 6), **given)
        if task == "generative_question_answering":
            build = build_writer if family in READERS else build_family
            return prepare(made, build(family, made / "tiny"), task, (24, 6, 6), **ANSWERED)
        return prepare(made, build_family(family, made / "tiny"), task, (24, 6, 6), **TASKS[task])

    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("family", "task_name", "way"), IN_TURN)
def test_cell(
    family: str,
    task_name: str,
    way: str,
    prepared_for: Any,
    plain_transformers: "subprocess.Popen[str]",
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`run` itself ends with an error unless both folders, loaded afresh, give the trained model's answers."""
    task, prepared, output = load_task(task_name), prepared_for(family, task_name), tmp_path / way
    imported = SelectedModel.model_folder(prepared / "model")
    run.main(finetune_words(prepared, output, **STEPS, **WAYS[way]))
    said = capsys.readouterr().out
    pytorch, served = output / "pytorch", mlflow_weights(output / "mlflow")

    log = json.loads((pytorch / "training.json").read_text())["log"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert sum(losses[-2:]) < sum(losses[:2])
    if task_name == "token_classification":
        for folder in (pytorch, served):
            config = json.loads((folder / "config.json").read_text())
            assert config["id2label"] == {str(i): name for i, name in enumerate(LABELS)}

    model, new = load_model(pytorch, task, None)
    assert new == []
    of_mlflow, new = load_model(served, task, None)
    assert new == [] and all(torch.equal(p, q) for p, q in zip(model.parameters(), of_mlflow.parameters(), strict=True))
    check_padding(model, prepared, task)
    if way != "full":
        check_lora(family not in OTHERS, model, imported, pytorch, way == "LoRA, unmerged", said)

    for port, folder in (("pytorch_model_path", pytorch), ("mlflow_model_path", output / "mlflow")):
        again = tmp_path / port
        model_selector.main(["--task", task_name, f"--{port}", str(folder), "--output_dir", str(again)])
        assert SelectedModel.read(again, task_name).new_weights == ()
        as_imported, _ = load_model(SelectedModel.model_folder(again), task, None)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), as_imported.parameters(), strict=True))

    check_plain(plain_transformers, pytorch, task, model, way == "LoRA, unmerged", (family, task_name) in OWN_HEAD)
    if way == "LoRA, unmerged" and family in SCORED:
        check_scores(prepared, output, task_name)


def check_padding(model: Any, prepared: Path, task: Task) -> None:
    """A row gets the same answer alone as in a batch with longer ones."""
    given = json.loads((prepared / "data" / "preprocess.json").read_text())["state"]
    tokenizer = load_tokenizer(prepared / "data" / "tokenizer", task)
    rows = read_rows(Preprocessed.rows_file(prepared / "data", "test"))
    alone, together = (predict_rows(model, tokenizer, rows, task, task.state(**given), size) for size in (1, 6))
    for one, other in zip(alone, together, strict=True):
        if not task.serving.tied(one, task.serving.present(other), task.state(**given), 1e-5):
            assert not list(_different(task.serving.present(one), task.serving.present(other)))


def check_lora(listed: bool, merged: Any, imported: Path, pytorch: Path, unmerged: bool, said: str) -> None:
    """The head is trained and saved, nothing else but the adapters is, and merging changes no answer."""
    head, layers = head_parameters(merged), targets(merged)
    assert (merged.config.model_type in TARGETS) == listed
    assert "learnt nothing" not in said and ("adapters merged" in said) == unmerged

    folder = pytorch if unmerged else pytorch / "checkpoint-8"
    saved = load_file(folder / "adapter_model.safetensors")
    of_adapters = sum(tensor.numel() for name, tensor in saved.items() if ".lora_" in name)
    of_head = sum(merged.get_parameter(name).numel() for name in head)
    trained, total = of_adapters + of_head, merged.num_parameters() + of_adapters
    line = f"LoRA: {trained:,} of {total:,} parameters are trained ({trained / total:.2%}): "
    assert f"{line}{of_adapters:,} of adapters, {of_head:,} of the head\n" in said
    assert {name.removeprefix("base_model.model.") for name in saved if ".lora_" not in name} == set(head)
    plain = type(merged).from_pretrained(imported, config=merged.config, ignore_mismatched_sizes=True)
    before = {name: p.clone() for name, p in plain.named_parameters()}
    with_adapters = PeftModel.from_pretrained(plain, folder).eval()
    difference = max(
        float((one - other).abs().max())
        for one, other in zip(logits(with_adapters.base_model.model), logits(merged), strict=True)
    )
    assert difference < 1e-5
    changed = {name for name, p in merged.named_parameters() if not p.equal(before[name])}
    of_adapters = {name for name in changed - set(head) if f".{name.removesuffix('.weight')}".endswith(ending(layers))}
    assert changed == of_adapters | set(head) and of_adapters
    if unmerged:
        for file in imported.glob("*.safetensors"):
            assert (pytorch / BASE_MODEL / file.name).read_bytes() == file.read_bytes()
        assert json.loads((pytorch / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE_MODEL


def ending(layers: list[str]) -> tuple[str, ...]:
    return tuple(f".{layer}" for layer in layers)


@torch.no_grad()
def logits(model: Any) -> list[torch.Tensor]:
    outputs = model.eval()(**INPUTS, **(DECODED if writes(model) else {}))
    return [outputs[name] for name in ("logits", "start_logits", "end_logits") if name in outputs]


def writes(model: Any) -> bool:
    return type(model) in AutoModelForSeq2SeqLM._model_mapping.values()


PLAIN = """
import json, sys
sys.modules["finetune"] = None
import torch, transformers
from peft import PeftModel

def outputs(folder, auto, unmerged, inputs, decoded):
    config = transformers.AutoConfig.from_pretrained(folder)
    source = f"{folder}/base_model" if unmerged else folder
    model = auto.from_pretrained(source, config=config, ignore_mismatched_sizes=unmerged)
    if unmerged:
        model = PeftModel.from_pretrained(model, folder).base_model.model
    inputs, decoded = ({name: torch.tensor(ids) for name, ids in given.items()} for given in (inputs, decoded))
    with torch.no_grad():
        found = model.eval()(**inputs, **decoded)
        written = [model.generate(**inputs).tolist()] if decoded else []
    return [found[name].tolist() for name in ("logits", "start_logits", "end_logits") if name in found], written

for line in sys.stdin:
    folder, auto, *given = json.loads(line)
    try:
        found = outputs(folder, getattr(transformers, auto), *given)
    except Exception as error:
        found = str(error)
    print(json.dumps(found), flush=True)
"""


def check_plain(
    process: "subprocess.Popen[str]", pytorch: Path, task: Task, trained: Any, unmerged: bool, own: bool
) -> None:
    """The folder loads without any code of this package, wherever transformers has the class, with the same logits; and
    what it writes, it writes there too."""
    assert process.stdin and process.stdout
    given = [
        {name: ids.tolist() for name, ids in part.items()} for part in (INPUTS, DECODED if writes(trained) else {})
    ]
    auto_model = task.model.auto_model(load_config(pytorch)).__name__
    process.stdin.write(json.dumps([str(pytorch), auto_model, unmerged, *given]) + "\n")
    found = json.loads(process.stdout.readline())
    if own:
        assert "Unrecognized configuration class" in found, "transformers has a class for it by now"
        return
    assert not isinstance(found, str), found
    outputs, written = found
    for got, tensor in zip(outputs, logits(trained), strict=True):
        assert float((torch.tensor(got) - tensor).abs().max()) < 1e-5
    task.model.configure(trained, stored_state(pytorch, task))
    for tokens in written:
        assert tokens == trained.generate(**INPUTS).tolist()


def check_scores(prepared: Path, output: Path, task_name: str) -> None:
    """Both folders give the same metrics."""
    found = []
    for port, folder in (("mlflow_model_folder", "mlflow"), ("pytorch_model_folder", "pytorch")):
        words = ["--task", task_name, "--preprocess_output", str(prepared / "data"), f"--{port}", str(output / folder)]
        evaluation.main([*words, "--evaluation_result", str(output / "scores")])
        metrics = json.loads((output / "scores" / "metrics.json").read_text())
        found.append({key: value for key, value in metrics.items() if "second" not in key})
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_words_are_read_as_inside_a_text(family: str, prepared_for: Any) -> None:
    """RoBERTa, GPT-2, BART and ModernBERT have other tokens for a word after a space than for one without."""
    task = load_task("token_classification")
    folder = prepared_for(family, task.name) / "data" / "tokenizer"
    tokenizer = load_tokenizer(folder, task)
    sentence: list[str] = next(r["tokens"] for r in sample_rows("test", task.name) if r["tokens"][2].isalpha())
    inside = tokenizer("x " + sentence[2], add_special_tokens=False)["input_ids"]
    alone = tokenizer([[before_words(tokenizer) + sentence[2]]], is_split_into_words=True, add_special_tokens=False)[
        "input_ids"
    ][0]
    assert inside[-len(alone) :] == alone
    plain: Any = AutoTokenizer.from_pretrained(folder)
    assert (
        plain([sentence], is_split_into_words=True)["input_ids"]
        == tokenizer([sentence], is_split_into_words=True)["input_ids"]
    )


INTRODUCTION = """\
# Model families

Each cell is a test that trains 8 steps of a tiny random model of the family, begun from what pretraining leaves (a
masked or causal language model, or one that writes), through the command lines of model import, preprocess and
finetune. It passes if

- the loss falls, and both folders, loaded afresh, give the trained model's answers, alone and in batches;
- with LoRA, the head and the adapters are trained and saved, nothing else is changed by a bit, and the logits of the
  merged model are those of the model with adapters to 1e-5;
- an unmerged folder holds the adapter with its head, and beside it the imported weights byte for byte, while the MLflow
  model has the adapters merged;
- the PyTorch folder loads in plain transformers with the same logits to 1e-5, without this package; unmerged, by the
  lines on its model card, with peft;
- both folders are taken by model import again, with not one weight new;
- of translation, plain transformers also writes the same tokens: languages, start and length are in the folder.

"·" is a family that the task has no use for, or that was not tried: what translates is an encoder-decoder, and has a
tokenizer for texts in two languages; what writes answers has a fast tokenizer. "answers" are generative question
answering, for which GPT-NeoX, Gemma, Phi-3, Qwen3 and mBART-50 write as plain transformers does too
(`tests/tasks/generative_question_answering`). Each cell stands for the PyTorch folder / the MLflow model. Written by
`python -m tests.models.test_families` if all pass.

"""
NOTES = """
¹ transformers has no such class; the head is this package's, which has to be imported before the folder is loaded (the
model card shows the line). The MLflow model brings it along.

² Not in the table of families: adapters go on all linear layers of the body, found in the model.

Other families that transformers has a head for are finetuned in the same way, untested here: `finetune` lists them when
it is given one it can't finetune. DoRA and rank-stabilised LoRA (`lora_type`) are tested on BERT, GPT-2 and T5.
DeBERTa v1 is trained and evaluated in 32 bits alone: transformers can't compute it in 16.
"""


def page() -> str:
    """As it is once every cell has passed."""
    headings = {
        "question_answering": "questions", "token_classification": "tags", "translation": "translation",
        "generative_question_answering": "answers",
    }  # fmt: skip
    columns = [f"{headings[task]}: {way}" for task in headings for way in WAYS]
    lines = [f"| family | adapters on | {' | '.join(columns)} |", f"|{' --- |' * (2 + len(columns))}"]
    for family in sorted({*FAMILIES, *OTHERS, *WRITERS}):
        cells = [
            f"✓{'¹' * ((family, task) in OWN_HEAD)} / ✓" if (family, task, way) in CELLS else "·"
            for task in headings
            for way in WAYS
        ]
        layers = "all linear layers ²" if family in OTHERS else ", ".join(TARGETS[model_type(family)])
        lines.append(f"| {family} | {layers} | {' | '.join(cells)} |")
    return INTRODUCTION + "\n".join(lines) + "\n" + NOTES


def model_type(family: str) -> str:
    """DeBERTa v3 is a kind of v2, ByT5 a T5, mBART-50 an mBART, NLLB an M2M100."""
    config_class: str = {**FAMILIES, **OTHERS, **WRITERS}[family][0]
    return str(getattr(transformers, config_class).model_type)


def test_the_page_lists_every_cell() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tests.models.test_families`"


if __name__ == "__main__":
    failed = pytest.main([__file__, "-p", "no:cacheprovider", "-k", "test_cell"])
    if not failed:
        PAGE.write_text(page(), encoding="utf-8")
    sys.exit(failed)
