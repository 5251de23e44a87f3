"""Hand-off folders, MLTable folders and manifests, broken at random: they are read, or refused by an error of ours."""

import random
import shutil
from pathlib import Path

import pytest

from finetune.core.errors import ParameterError
from finetune.core.outputs import MANIFEST, Manifest, Output, refusals
from finetune.data.folders import Preprocessed, SelectedModel, Trained, read_rows
from finetune.data.mltable import read_mltable
from finetune.tasks import load_task
from finetune.training import attempts, checkpoints
from finetune.training.resume import Marker
from tests import mutations
from tests.conftest import sample_rows, write_jsonl
from tests.mutations import TIERS, break_json, break_place, broken_text, fuzz, renewed

TRAINED = Trained(
    task="question_answering", base_model="bert", source="huggingface_id", model_type="bert", metric="loss",
    greater_is_better=False, best_step=1, validation={"loss": 1.0}, log=[{"step": 1, "loss": 0.5}], device="1 x cpu",
    speed={"train_seconds": 1.0}, splits={}, parameters={"max_steps": 1}, versions={"torch": "2"},
)  # fmt: skip


def broken(path: Path, chance: random.Random) -> None:
    (break_json if chance.random() < 0.9 else break_place)(path, chance)


@TIERS
@pytest.mark.parametrize("folders", ["prepared", "prepared_tags"])
def test_what_preprocess_hands_off(
    folders: str, cases: int, seconds: float, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole = request.getfixturevalue(folders) / "data"
    task = load_task("question_answering" if folders == "prepared" else "token_classification")
    names = ["preprocess.json", "preprocess.json", "test/rows.jsonl", "validation/rows.jsonl"]
    names += [f"{split}/windows/state.json" for split in ("train", "validation")]
    names += ["train/windows/dataset_info.json", "train/windows/data-00000-of-00001.arrow"]
    copied = shutil.copytree(whole, tmp_path / "data")

    def case(chance: random.Random) -> None:
        name = chance.choice(names)
        path = copied / name
        kept = path.read_bytes()
        try:
            if path.suffix == ".arrow":
                content = bytearray(kept)
                for _ in range(chance.randrange(1, 9)):
                    content[chance.randrange(min(len(content), 4000))] = chance.randrange(256)
                path.write_bytes(content[: chance.choice([len(content), chance.randrange(len(content))])])
            else:
                broken(path, chance)
            preprocessed = Preprocessed.read(copied, task.name)
            preprocessed.state_as(task.state)
            for split in ("validation", "test"):
                rows = read_rows(Preprocessed.rows_file(copied, split), task.data.damage)
                assert all(task.data.group(row) is not None and task.data.characters(row) >= 0 for row in rows)
                assert all(task.data.kinds(row) is not None for row in rows)
            attempts.load_windows(copied, task, preprocessed)
        finally:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
            path.write_bytes(kept)

    fuzz(case, 1, cases, seconds)


@TIERS
def test_records(cases: int, seconds: float, tmp_path: Path) -> None:
    """model_selector_args.json, training.json, and the marks of checkpoints."""
    task = TRAINED.task
    whole = tmp_path / "whole"
    SelectedModel(task, "huggingface_id", "bert", "bert", "BertForQuestionAnswering", ("a.weight",)).write(whole)
    TRAINED.write(whole)
    marker = Marker(
        windows=4,
        data="a",
        model="b",
        teacher="",
        global_batch=2,
        total_steps=2,
        batch=[1, 1],
        wanted_batch=[1, 1],
        processes=1,
        engine={"stage": 1},
        parameters={"seed": 1},
        command={"seed": 1},
    )
    checkpoint = whole / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / checkpoints.STATE).write_text(
        '{"global_step": 1, "best_global_step": 1, "stateful_callbacks": {"A": [{}]}, "log_history": []}'
    )
    checkpoints.begin(whole / "checkpoint-2")
    (checkpoint / checkpoints.WRITING).touch()
    checkpoints.finish(checkpoint, vars(marker), checkpoints.flush(checkpoint, 0))
    names = ["model_selector_args.json", "training.json"]
    names += [f"checkpoint-1/{name}" for name in (checkpoints.COMPLETE, checkpoints.STATE)]

    def case(chance: random.Random) -> None:
        folder = renewed(whole, tmp_path / "broken")
        name = chance.choice(names)
        broken(folder / name, chance)
        checkpoints.known(folder)
        if not checkpoints.why_incomplete(folder / "checkpoint-1"):
            Marker.read(folder / "checkpoint-1")
        SelectedModel.read(folder, task)
        Trained.read(folder, task)

    fuzz(case, 2, cases, seconds)


@TIERS
def test_manifests(cases: int, seconds: float, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    (whole / "train").mkdir(parents=True)
    (whole / "train" / "rows.jsonl").write_text("{}")
    Manifest(frozenset(["train/rows.jsonl"]), ("preprocess.json", "train/")).write(whole)

    def case(chance: random.Random) -> None:
        folder = renewed(whole, tmp_path / "broken")
        broken(folder / MANIFEST, chance)
        if faults := refusals(Output("--output_dir", folder, ("preprocess.json", "train/", "part-#.txt"))):
            raise ParameterError(*faults)

    fuzz(case, 3, cases, seconds)


@TIERS
def test_mltables(cases: int, seconds: float, tmp_path: Path) -> None:
    rows = sample_rows("train")[:4]
    specs = [
        "paths:\n- file: ./rows.jsonl\n- pattern: ./sub/**/*.jsonl\ntransformations:\n- read_json_lines\n",
        "paths:\n- file: ./rows.csv\ntransformations:\n- read_delimited:\n    delimiter: ','\n    header: all_files\n",
        "$schema: x\ntype: mltable\npaths: &p\n  - pattern: '*.jsonl'\ntransformations: [{read_json_lines: {a: *p}}]\n",
    ]
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, tmp_path / "sub"):
        write_jsonl(folder / "rows.jsonl", rows)
    (tmp_path / "rows.csv").write_text("question,context\na,b\n")

    def case(chance: random.Random) -> None:
        (tmp_path / "MLTable").write_bytes(broken_text(chance.choice(specs), chance))
        read_mltable(tmp_path)

    fuzz(case, 4, cases, seconds)


def test_the_mutations_are_those_of_their_seed() -> None:
    made = [[mutations.broken_text("a: [b]", random.Random(seed)) for seed in range(50)] for _ in range(2)]
    assert made[0] == made[1] and len(set(made[0])) > 25
