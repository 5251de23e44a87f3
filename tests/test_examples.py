"""The submissions in examples/ are built by azure-ai-ml, the notebook runs, and the sample is what it says it is."""

import json
import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

import dev
from examples.generative_question_answering import people
from examples.scratch_model import make_model, make_tokenizer
from examples.translation import language
from finetune import model_selector, run
from finetune.azure.pipeline_yaml import load_pipeline
from finetune.azure.plan import prepare, read_words
from finetune.core.errors import ParameterError
from finetune.models.stored.tokenizers import load_tokenizer
from finetune.tasks import load_task
from finetune.tasks.token_classification.schemes import detect, entities
from tests.conftest import ROOT, finetune_words, sample_rows, write_jsonl
from tests.forking import Command, Forks
from tests.test_docs import LINK

TASKS = ("question_answering", "generative_question_answering", "token_classification", "translation")
SPLITS = ("train", "validation", "test")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_job_yaml_is_valid(task: str) -> None:
    from azure.ai.ml import load_job

    job = load_job(ROOT / "examples" / f"job_{task}.yaml")
    assert job._validate().passed
    assert job.jobs[task].inputs["num_train_epochs"]._data == 3


@pytest.mark.slow
def test_sweep_yaml_is_valid() -> None:
    """It goes by the metric that its runs log, and varies what the component knows."""
    from azure.ai.ml import load_job

    job = load_job(ROOT / "examples" / "sweep.yaml")
    assert job._validate().passed
    sweep = job.jobs["finetune"]
    assert sweep.type == "sweep"
    assert sweep.objective.primary_metric == f"eval_{sweep.inputs['metric_for_best_model']._data}"
    assert set(sweep.search_space) == {"learning_rate", "per_device_train_batch_size"} < set(sweep.trial.inputs)


def plain(job: Any) -> dict[str, Any]:
    """What azure-ai-ml makes of a job; without the names of its components, which in a YAML job are none."""
    made: dict[str, Any] = job._to_dict()
    for step in made["jobs"].values():
        component = step.get("component") or step["trial"]
        del component["name"], component["version"]
        for entry in step["inputs"].values():
            if isinstance(entry, dict) and "type" in entry:  # a file, in the YAML beside it
                entry["path"] = str(ROOT / "examples" / entry["path"].removeprefix("azureml:"))
    return made


@pytest.mark.slow
def test_the_sweep_in_python_is_the_one_in_yaml() -> None:
    from azure.ai.ml import load_job

    built = runpy.run_path(str(ROOT / "examples" / "sweep.py"))["make_sweep"]()
    assert built._validate().passed
    made = plain(built)
    assert made == plain(load_job(ROOT / "examples" / "sweep.yaml"))
    sweep = made["jobs"]["finetune"]
    assert sweep["search_space"].keys() == {"learning_rate", "per_device_train_batch_size"}
    assert {"early_termination", "limits", "objective"} < sweep.keys() and made["outputs"]["model"]


@pytest.mark.slow
def test_a_run_logs_the_metric_of_the_sweep(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = yaml.safe_load((ROOT / "examples" / "sweep.yaml").read_text())["jobs"]["finetune"]
    best = sweep["inputs"]["metric_for_best_model"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run.main(finetune_words(prepared, tmp_path, max_steps=1, metric_for_best_model=best))
    (logged,) = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_runs(["0"])
    assert sweep["objective"]["primary_metric"] in logged.data.metrics


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_submit_builds_a_job(task: str) -> None:
    job = runpy.run_path(str(ROOT / "examples" / "submit.py"))["make_job"](task)
    assert job._validate().passed
    assert set(job.outputs) == {"pytorch_model_folder", "mlflow_model_folder", "evaluation_result"}


@pytest.mark.slow
def test_submit_refuses_what_azure_ml_would_not_carry(tmp_path: Path) -> None:
    submit = runpy.run_path(str(ROOT / "examples" / "submit.py"))
    rows = tmp_path / "o'brien.jsonl"
    rows.touch()
    hostile = {"huggingface_id": "it's", "train_file_path": str(rows)}
    with pytest.raises(ParameterError) as caught:
        submit["make_job"]("question_answering", **hostile)
    assert {fault.what.partition(":")[0] for fault in caught.value.faults} == hostile.keys()


# Runs the code of a notebook cell by cell and shows what their expressions give; the second word is a cell of ours, the
# second to run.
RUN_CELLS = """
import ast, json, sys
cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
first, *others = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
for text in (first, sys.argv[2], *others):
    exec(compile(ast.Interactive(ast.parse(text).body), "<cell>", "single"))
"""


@pytest.mark.slow
def test_the_notebook_runs(forks: Forks, tiny_model: Path, tmp_path: Path) -> None:
    files = {split: str(write_jsonl(tmp_path / f"{split}.jsonl", sample_rows(split)[:12])) for split in SPLITS}
    small = {"max_seq_length": 96, "max_steps": 2, "logging_steps": 1}
    values = f"MODEL, OUT, FILES = Path({str(tiny_model)!r}), Path({str(tmp_path / 'out')!r}), {files}"
    words = [str(ROOT / "examples" / "finetune.ipynb"), f"{values}; SETTINGS |= {small}"]
    env = {**os.environ, "MPLBACKEND": "agg"}
    shown = tmp_path / "shown"
    command = Command(["-c", RUN_CELLS, *words], env, str(ROOT / "examples"), str(shown), str(shown))
    codes, said = forks.run([command]), shown.read_text()
    assert codes == [0], said
    assert "12 test rows: exact " in said
    assert re.search(r"\n +answer +score +start +end\n0 ", said)


def test_the_notebook_is_short_and_holds_no_output() -> None:
    cells = json.loads((ROOT / "examples" / "finetune.ipynb").read_text(encoding="utf-8"))["cells"]
    assert 10 <= len(cells) <= 14
    assert not any(cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    linked = [
        name for cell in cells if cell["cell_type"] == "markdown" for name in LINK.findall("".join(cell["source"]))
    ]
    assert linked and all((ROOT / "examples" / name).exists() for name in linked)


def test_sample_of_words_and_tags() -> None:
    rows = {split: sample_rows(split, "token_classification") for split in SPLITS}
    sentences = [" ".join(row["tokens"]) for split in rows.values() for row in split]
    assert len(sentences) == len(set(sentences)) == 640  # none twice, so none on two sides
    found = {split: [e for row in made for e in named(row)] for split, made in rows.items()}
    for split, made in rows.items():
        assert detect(row["ner_tags"] for row in made) == ("IOB2", [], 0)
        assert all(len(row["tokens"]) == len(row["ner_tags"]) for row in made)
        assert min(Counter(kind for kind, _ in found[split]).values()) >= 15
    for split in ("validation", "test"):  # most names are new, so that the score is no score of memory
        assert len(set(found[split]) - set(found["train"])) > 0.9 * len(set(found[split]))


def named(row: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(kind, " ".join(row["tokens"][a : b + 1])) for kind, a, b in entities(row["ner_tags"], "IOB2")]


def test_sample_of_questions() -> None:
    contexts = {
        split: Counter(row["context"] for row in sample_rows(split)) for split in ("train", "validation", "test")
    }
    assert sum(map(len, contexts.values())) == len(set().union(*contexts.values())) >= 60  # none on two sides
    assert min(count for split in contexts.values() for count in split.values()) >= 4
    for split in contexts:
        for row in sample_rows(split):
            (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
            assert row["context"][start : start + len(text)] == text


FORMS = {form: noun.one for noun in language.NOUNS for form in (noun.one, noun.many)}
VERBS = {form: forms[0] for forms in language.VERBS for form in forms}


def pairs_of(text: str) -> Iterator[tuple[str, str]]:
    """The adjective and noun, and the verb and object, that stand together in an English sentence."""
    words = [word for word in re.findall("[a-z]+", text.lower()) if word not in {"the", "a", "an", *language.NUMBERS}]
    for i, word in enumerate(words):
        following = [FORMS[other] for other in words[i + 1 : i + 3] if other in FORMS]
        if word in language.ADJECTIVES:
            yield word, FORMS[words[i + 1]]
        elif word in VERBS:
            yield VERBS[word], following[0]


def test_sample_of_translations() -> None:
    """In each sentence that is held out stand two words together that never do in train, where each stands alone."""
    rows = {split: sample_rows(split, "translation") for split in SPLITS}
    sentences = [row["en"] for split in rows.values() for row in split]
    assert len(sentences) == len(set(sentences)) == sum(language.SIZES.values())
    train = {pair for row in rows["train"] for pair in pairs_of(row["en"])}
    words = {word for row in rows["train"] for text in row.values() for word in re.findall(r"\w+", text.lower())}
    assert len(train) > 800  # of 960
    for split in ("validation", "test"):
        for row in rows[split]:
            assert set(pairs_of(row["en"])) - train, row
            assert set(re.findall(r"\w+", " ".join(row.values()).lower())) <= words, row


def test_sample_of_translations_is_what_the_language_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "FOLDER", tmp_path)
    language.main()
    for split in SPLITS:
        name = f"{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (ROOT / "examples" / "translation" / name).read_bytes()


def test_the_model_that_is_made_is_imported(tmp_path: Path) -> None:
    """The same folder each time, so that steps of a demo that are done are skipped; what it reads, it can write."""
    texts = [text for row in sample_rows("train", "translation")[:500] for text in row.values()]
    for name in ("made", "again"):
        make_model(tmp_path / name, make_tokenizer(texts, vocabulary=300, longest=64))
    for file in (tmp_path / "made").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
    words = ["--task", "translation", "--pytorch_model_path", str(tmp_path / "made")]
    model_selector.main([*words, "--output_dir", str(tmp_path / "imported")])
    tokenizer = load_tokenizer(tmp_path / "imported" / "model", load_task("translation"))
    for text in texts[:50]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize(("task", "fetched"), [((), 1), (("token_classification",), 1), (("translation",), 0)])
def test_a_demo_that_makes_its_model_fetches_none(
    task: tuple[str, ...], fetched: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr(dev, "install", lambda _extra: None)
    monkeypatch.setattr(dev, "fetch_model", lambda: called.append("fetch_model"))
    monkeypatch.setattr(dev, "call", lambda *_words: called.append("call"))
    dev.demo(*task)
    assert called == [*["fetch_model"] * fetched, "call"]


def test_the_command_for_a_hub_is_one() -> None:
    demo = runpy.run_path(str(ROOT / "examples" / "demo.py"))
    for task in demo["SCRATCH"]:
        command = demo["command_with_hub"](task).replace("\\\n", "").split()
        assert command[:2] == ["finetune", "pipeline"]
        words = read_words(command[2:])
        prepared, faults = prepare(load_pipeline(words.file), words.values, words.output)
        assert len(prepared) == 4 and faults == []


@pytest.mark.slow
@pytest.mark.thorough
def test_the_demo_of_translation() -> None:
    """From random weights to a BLEU above 90 on sentences that are held out."""
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "translation"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = re.findall(r"^(base|finetuned) +([0-9.]+) +[0-9.]+$", done.stdout, re.M)
    scores = {label: float(bleu) for label, bleu in shown}
    assert scores["base"] < 5 and scores["finetuned"] > 90
    assert "a language of 74 words" in done.stdout and "huggingface_id=t5-small" in done.stdout


def told_in(text: str) -> set[tuple[str, str]]:
    """The persons of the quiz and what is told of them; She and He is who was named last."""
    values = {value for known in people.KINDS.values() for value in known}
    name, found = "", set()
    for words in (re.findall(r"\w+", sentence) for sentence in text.split(". ")):
        name = words[0] if words[0] in {*people.WOMEN, *people.MEN} else name
        found |= {(name, word) for word in words if word in values}
    return found


def test_sample_of_written_answers() -> None:
    """What is asked of a person in validation and test is told in no row of train, where each word stands."""
    rows = {split: sample_rows(split, "generative_question_answering") for split in SPLITS}
    asked = [(row["question"], row["context"]) for split in rows.values() for row in split]
    assert len(asked) == len(set(asked)) == sum(people.SIZES.values())
    train = set().union(*(told_in(row["context"]) for row in rows["train"]))
    words = {word for row in rows["train"] for word in words_of(row)}
    assert len(train) > 350  # of 456
    for split in SPLITS:
        answers = [answer for row in rows[split] for answer in row["answers"]["text"] or [""]]
        assert 0.1 < answers.count("") / len(answers) < 0.3
        assert {"yes", "no"} < set(answers)
        assert any(len(row["context"].split()) > 60 for row in rows[split])
    for row in rows["validation"] + rows["test"]:
        new = told_in(row["context"]) - train
        named = {name for name, _ in new if name in f"{row['question']} {row['answers']['text']}"}
        assert named or (new and not row["answers"]["text"]), row
        assert words_of(row) <= words, row


def words_of(row: dict[str, Any]) -> set[str]:
    return set(re.findall(r"\w+", " ".join([row["question"], row["context"], *row["answers"]["text"]])))


def test_sample_of_written_answers_is_what_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "FOLDER", tmp_path)
    people.main()
    for split in SPLITS:
        name = f"{split}.jsonl"
        sample = ROOT / "examples" / "generative_question_answering" / name
        assert (tmp_path / name).read_bytes() == sample.read_bytes()


@pytest.mark.slow
@pytest.mark.thorough
def test_the_demo_of_generative_question_answering() -> None:
    """From random weights to answers on what is told of nobody in training, no answer among them."""
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "generative_question_answering"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    scores = {name: float(f1) for name, f1 in re.findall(r"^(base|finetuned) +[0-9.]+ +([0-9.]+)", done.stdout, re.M)}
    assert scores["base"] < 30 and scores["finetuned"] > 80
    metrics = json.loads((ROOT / "out/demo_generative_question_answering/evaluation_result/metrics.json").read_text())
    assert metrics["HasAns_f1"] > 80 and metrics["NoAns_f1"] > 35
