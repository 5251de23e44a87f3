"""Pipeline and component YAMLs, broken at random: they are planned, or refused by an error of ours."""

import random
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from finetune.azure import plan
from finetune.azure.pipeline_yaml import load_pipeline
from finetune.check import commands_of, settle_steps
from tests.azure.test_pipeline_yaml import CHILD, EXPORT, PARENT
from tests.conftest import ROOT
from tests.mutations import TIERS, broken_text, broken_value, fuzz

SMALL = {"pipeline.yaml": PARENT, "child.yaml": {**deepcopy(CHILD), "code": "code"}, "export.yaml": EXPORT}


@TIERS
def test_small_pipelines(cases: int, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a value may come to mean the working folder, all of which is then looked at
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")

    def case(chance: random.Random) -> None:
        name = chance.choice([*SMALL, ".amlignore"])
        (tmp_path / "code" / ".amlignore").write_bytes(broken_text("*.txt\n", chance) if name == ".amlignore" else b"")
        for other, spec in SMALL.items():
            text = yaml.safe_dump(broken_value(spec, chance) if other == name else spec)
            as_text = other == name and chance.random() < 0.5
            (tmp_path / other).write_bytes(broken_text(text, chance) if as_text else text.encode())
        planned(tmp_path / "pipeline.yaml", data=tmp_path / "child.yaml", model=tmp_path / "code")

    fuzz(case, 5, cases, seconds)


def planned(path: Path, **given: Path) -> None:
    words = {name: str(value) for name, value in given.items()}
    prepared, faults = plan.prepare(load_pipeline(path), words, path.parent / "out")
    settle_steps(commands_of(prepared), faults)


@TIERS
def test_our_own_pipelines(cases: int, seconds: float, tmp_path: Path) -> None:
    source = ROOT / "components" / "token_classification"
    whole = {path.name: path.read_text() for path in source.glob("*.yaml")}
    for name in ("src/finetune", "configs"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copytree(source, tmp_path / "components" / "x")

    def case(chance: random.Random) -> None:
        name = chance.choice(list(whole))
        folder = tmp_path / "components" / "x"
        for other, text in whole.items():
            (folder / other).write_bytes(broken_text(text, chance) if other == name else text.encode())
        planned(folder / "pipeline.yaml", train_file_path=folder / name, huggingface_id=tmp_path / "configs")

    fuzz(case, 6, cases if seconds < 100 else 20, seconds)
