"""Every family through the command line: import, preprocess, train, save, reload, evaluate, import again.

One test for each cell of the table in docs/families.md, which is written by them: `python -m tests.test_families`.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer

from finetune import evaluation, model_selector, run
from finetune.adapt.lora import targets
from finetune.handoff import Preprocessed, SelectedModel, read_rows
from finetune.head import head_parameters
from finetune.model import BASE_MODEL, before_words, load_model, load_tokenizer
from finetune.prediction import predict_rows
from finetune.save import _alike, mlflow_weights
from finetune.tasks import load_task
from finetune.tasks.task import Task
from tests.conftest import ROOT, finetune_words, prepare, sample_rows
from tests.families import FAMILIES, OTHERS, build_family

PAGE = ROOT / "docs" / "families.md"
TASKS = {
    "question_answering": {"max_seq_length": 64, "doc_stride": 16},
    "token_classification": {"max_seq_length": 48},
}
LORA = {"apply_lora": "true", "lora_r": 4, "lora_alpha": 16}
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA, merged": LORA,
    "LoRA, unmerged": {**LORA, "merge_lora_weights": "false"},
}
STEPS = {
    "max_steps": 8, "evaluation_strategy": "steps", "eval_steps": 8, "logging_strategy": "steps", "logging_steps": 1,
    "learning_rate": 5e-3, "per_device_train_batch_size": 24,
}  # fmt: skip
INPUTS = torch.arange(20, 44).reshape(2, 12)
LABELS = ["B-DATE", "B-LOC", "B-ORG", "B-PER", "I-DATE", "I-LOC", "I-ORG", "I-PER", "O"]
CELLS = [(family, task, way) for family in (*FAMILIES, *OTHERS) for task in TASKS for way in WAYS]

trained: dict[tuple[str, str, str], Path] = {}  # the outputs of the cells that passed
plain: set[str] = set()  # those of them that load without this package, where transformers has the class
adapted: dict[str, list[str]] = {}  # family -> the layers with adapters


@pytest.fixture(scope="module")
def prepared_for(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(family, task) -> the outputs of import and preprocess."""

    @cache
    def folder(family: str, task: str) -> Path:
        made = tmp_path_factory.mktemp(f"{family}-{task}")
        (made / "tiny").mkdir()
        return prepare(made, build_family(family, made / "tiny"), task, (48, 6, 6), **TASKS[task])

    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("family", "task_name", "way"), CELLS)
def test_cell(
    family: str, task_name: str, way: str, prepared_for: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
        check_lora(family, model, imported, pytorch, way == "LoRA, unmerged", said)

    for port, folder in (("pytorch_model_path", pytorch), ("mlflow_model_path", output / "mlflow")):
        again = tmp_path / port
        model_selector.main(["--task", task_name, f"--{port}", str(folder), "--output_dir", str(again)])
        assert SelectedModel.read(again, task_name).new_weights == ()
        as_imported, _ = load_model(SelectedModel.model_folder(again), task, None)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), as_imported.parameters(), strict=True))

    torch.save(logits(model), output / "logits.pt")
    trained[family, task_name, way] = output


def check_padding(model: Any, prepared: Path, task: Task) -> None:
    """A row gets the same answer alone as in a batch with longer ones."""
    given = json.loads((prepared / "data" / "preprocess.json").read_text())["state"]
    tokenizer = load_tokenizer(prepared / "data" / "tokenizer", task)
    rows = read_rows(Preprocessed.rows_file(prepared / "data", "test"))
    alone, together = (predict_rows(model, tokenizer, rows, task, task.state(**given), size) for size in (1, 6))
    for one, other in zip(alone, together, strict=True):
        assert _alike(task.served.present(one), task.served.present(other))


def check_lora(family: str, merged: Any, imported: Path, pytorch: Path, unmerged: bool, said: str) -> None:
    """The head is trained and saved, nothing else but the adapters is, and merging changes no answer."""
    head, layers = head_parameters(merged), targets(merged)
    adapted.setdefault(family, [] if family in OTHERS else layers)
    sizes = {name: p.numel() for name, p in merged.named_parameters()}
    assert f"{sum(sizes[name] for name in head):,} of the head" in said and "learnt nothing" not in said
    assert ("adapters merged" in said) == unmerged

    folder = pytorch if unmerged else pytorch / "checkpoint-8"
    saved = load_file(folder / "adapter_model.safetensors")
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
    outputs = model.eval()(input_ids=INPUTS, attention_mask=torch.ones_like(INPUTS))
    return [outputs[name] for name in ("logits", "start_logits", "end_logits") if name in outputs]


PLAIN = """
import json, sys
sys.modules["finetune"] = None
import torch, transformers
from peft import PeftModel
for folder, auto, unmerged, missing in json.loads(sys.argv[1]):
    auto = getattr(transformers, auto)
    if missing:
        try:
            auto.from_pretrained(f"{folder}/base_model" if unmerged else folder)
        except ValueError as error:
            assert "Unrecognized configuration class" in str(error)
            print(folder)
            continue
        raise SystemExit(f"{folder}: transformers has a class for it by now")
    config = transformers.AutoConfig.from_pretrained(folder)
    source = f"{folder}/base_model" if unmerged else folder
    model = auto.from_pretrained(source, config=config, ignore_mismatched_sizes=unmerged)
    if unmerged:
        model = PeftModel.from_pretrained(model, folder).base_model.model
    with torch.no_grad():
        outputs = model.eval()(**dict(zip(("input_ids", "attention_mask"), torch.load(f"{folder}/inputs.pt"))))
    wanted = torch.load(f"{folder}/../logits.pt")
    got = [outputs[name] for name in ("logits", "start_logits", "end_logits") if name in outputs]
    for one, other in zip(got, wanted, strict=True):
        assert float((one - other).abs().max()) < 1e-5, (folder, float((one - other).abs().max()))
    print(folder)
"""


@pytest.mark.slow
def test_saved_models_load_in_plain_transformers() -> None:
    """Without any code of this package, wherever transformers has the class: not BART and mBART with tags."""
    wanted = []
    for (family, task_name, way), output in trained.items():
        torch.save([INPUTS, torch.ones_like(INPUTS)], output / "pytorch" / "inputs.pt")
        missing = task_name == "token_classification" and family in ("bart", "mbart")
        auto = load_task(task_name).auto_model.__name__
        wanted.append((str(output / "pytorch"), auto, way == "LoRA, unmerged", missing))
    if not wanted:
        pytest.skip("no model was trained: run the whole file")
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, json.dumps(wanted)], capture_output=True, text=True, check=False
    )
    plain.update(done.stdout.split("\n"))
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "mbart"])
@pytest.mark.parametrize("task_name", TASKS)
def test_both_folders_score_alike(family: str, task_name: str, tmp_path: Path) -> None:
    output = trained.get((family, task_name, "LoRA, unmerged"))
    if output is None:
        pytest.skip("no model was trained: run the whole file")
    found, data = [], output.parents[1]
    for port, folder in (("mlflow_model_folder", "mlflow"), ("pytorch_model_folder", "pytorch")):
        words = ["--task", task_name, "--test_data", str(sample_file(tmp_path, task_name)), f"--{port}"]
        evaluation.main([*words, str(output / folder), "--evaluation_result", str(tmp_path / folder)])
        metrics = json.loads((tmp_path / folder / "metrics.json").read_text())
        found.append({key: value for key, value in metrics.items() if "second" not in key})
    assert found[0] == found[1], data


def sample_file(folder: Path, task: str) -> Path:
    rows = sample_rows("test", task)[:6]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


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
masked or causal language model), through the command lines of model import, preprocess and finetune. It passes if

- the loss falls, and both folders, loaded afresh, give the trained model's answers, alone and in batches;
- with LoRA, the head and the adapters are trained and saved, nothing else is changed by a bit, and the logits of the
  merged model are those of the model with adapters to 1e-5;
- an unmerged folder holds the adapter with its head, and beside it the imported weights byte for byte, while the MLflow
  model has the adapters merged;
- the PyTorch folder loads in plain transformers (and peft) with the same logits to 1e-5, without this package;
- both folders are taken by model import again, with not one weight new.

Each cell stands for the PyTorch folder / the MLflow model. Written by `python -m tests.test_families`.

"""
NOTES = """
¹ transformers has no such class; the head is this package's, which has to be imported before the folder is loaded (the
model card shows the line). The MLflow model brings it along.

² Not in the table of families: adapters go on all linear layers of the body, found in the model.

Other families that transformers has a head for are finetuned in the same way, untested here: `finetune` lists them when
it is given one it can't finetune. DoRA and rank-stabilised LoRA (`lora_type`) are tested on BERT, GPT-2 and T5.
"""


def page() -> str:
    headings = [f"{'questions' if task == 'question_answering' else 'tags'}: {way}" for task in TASKS for way in WAYS]
    lines = [f"| family | adapters on | {' | '.join(headings)} |", f"|{' --- |' * (2 + len(headings))}"]
    for family in sorted((*FAMILIES, *OTHERS)):
        cells = []
        for task in TASKS:
            own = task == "token_classification" and family in ("bart", "mbart")
            for way in WAYS:
                output = trained.get((family, task, way))
                cells.append(f"✓{'¹' * own} / ✓" if output and str(output / "pytorch") in plain else "✗")
        layers = "all linear layers ²" if family in OTHERS else ", ".join(adapted[family])
        lines.append(f"| {family} | {layers} | {' | '.join(cells)} |")
    return INTRODUCTION + "\n".join(lines) + "\n" + NOTES


@pytest.mark.slow
def test_the_page_says_what_was_found(request: pytest.FixtureRequest) -> None:
    """Also that a cell has failed."""
    chosen = [item for item in request.session.items if item.name.startswith("test_cell")]
    if len(chosen) < len(CELLS) or "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("not every cell was tried in this process")
    if "FINETUNE_WRITE_PAGE" in os.environ:
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page()


if __name__ == "__main__":
    os.environ["FINETUNE_WRITE_PAGE"] = "1"
    sys.exit(pytest.main([__file__, "-p", "no:cacheprovider"]))
