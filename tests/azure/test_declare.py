"""The generated YAMLs, and `finetune declare` in a copy of the checkout."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.params.components import TASKS
from finetune.params.schema import params_of
from tests.conftest import ROOT

COMPONENTS = ("model_import", "datapreprocess", "finetune", "evaluation")
FINETUNE = "components/question_answering/finetune.yaml"
# The pipeline scores the split that preprocess made, in 32 bits.
LEFT_ALONE = {
    "model_import": {"validation_output"},
    "evaluation": {"test_data", "pytorch_model_folder", "openvino_model_folder", "precision", "seed", "null_threshold"},
}


def component(name: str) -> dict[str, Any]:
    path = ROOT / "components" / "question_answering" / f"{name}.yaml"
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def values_in(value: Any) -> Iterator[Any]:
    """Every scalar of a nested mapping."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from values_in(item)
    if not isinstance(value, (dict, list)):
        yield value


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of everything that declare reads and writes."""
    for name in ("src", "components", "environments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def declare(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`finetune declare` of the copy, which writes beside its own source."""
    env = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, "-m", "finetune", "declare", *words]
    return subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", COMPONENTS)
def test_optional_inputs_and_no_others_stand_in_groups(name: str) -> None:
    spec = component(name)
    assert "\n" not in spec["command"].strip()
    for key, entry in spec["inputs"].items():
        # Azure ML puts values in as they are: what may hold a space is quoted.
        quote = "" if entry["type"] in ("integer", "number") or "enum" in entry else "'"
        words = f"--{key}={quote}${{{{inputs.{key}}}}}{quote}"
        assert spec["command"].count(words) == 1
        assert (f"$[[{words}]]" in spec["command"]) == entry.get("optional", False)
    for key in spec["outputs"]:
        assert spec["command"].count(f" --{key}='${{{{outputs.{key}}}}}'") == 1
    assert len(re.findall(r" (?:\$\[\[)?--", spec["command"])) == 1 + len(spec["inputs"]) + len(spec["outputs"])


@pytest.mark.parametrize("name", COMPONENTS)
def test_booleans_are_string_enums_with_string_defaults(name: str) -> None:
    booleans = [p for p in params_of(vars(TASKS["question_answering"])[name]) if p.kind == "boolean"]
    assert booleans or name in ("model_import", "evaluation")
    for place in (component(name), component("pipeline")):
        for p in booleans:
            entry = place["inputs"][p.name]
            assert (entry["type"], entry["enum"]) == ("string", ["true", "false"])
            assert entry["default"] == ("true" if p.default else "false")


@pytest.mark.parametrize("name", [*COMPONENTS, "pipeline"])
def test_no_bare_boolean_besides_those_of_the_schema(name: str) -> None:
    inputs = [{**entry, "optional": None} for entry in component(name)["inputs"].values()]
    assert inputs
    assert not [value for value in values_in(inputs) if isinstance(value, bool)]


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_pipeline_passes_on_every_input(name: str) -> None:
    job = component("pipeline")["jobs"][f"question_answering_{name}"]
    assert set(component(name)["inputs"]) - set(job["inputs"]) == LEFT_ALONE.get(name, set())


def test_every_input_of_the_pipeline_reaches_a_job() -> None:
    spec = component("pipeline")
    used = re.findall(r"\$\{\{parent\.inputs\.(\w+)\}\}", " ".join(map(str, values_in(spec["jobs"]))))
    assert set(used) == set(spec["inputs"])


def test_the_checkout_is_in_step(checkout: Path) -> None:
    result = declare(checkout, "--check")
    assert (result.returncode, result.stderr) == (0, "")
    assert "in step with the parameters" in result.stdout


def test_check_names_the_stale_files_and_the_command_and_writes_nothing(checkout: Path) -> None:
    (checkout / FINETUNE).write_text("stale\n", encoding="utf-8")
    (checkout / "components" / "token_classification" / "pipeline.yaml").unlink()
    result = declare(checkout, "--check")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "parameter error: generated files are stale",
        f"  where: {FINETUNE}, components/token_classification/pipeline.yaml",
        "  fix: finetune declare",
    ]
    assert (checkout / FINETUNE).read_text(encoding="utf-8") == "stale\n"

    assert declare(checkout).returncode == 0
    assert (checkout / FINETUNE).read_bytes() == (ROOT / FINETUNE).read_bytes()
    assert declare(checkout, "--check").returncode == 0


def test_a_changed_parameter_reaches_the_yaml(checkout: Path) -> None:
    source = checkout / "src" / "finetune" / "params" / "finetune.py"
    text = source.read_text(encoding="utf-8")
    assert text.count("lora_r: int = param(8,") == 1
    source.write_text(text.replace("lora_r: int = param(8,", "lora_r: int = param(9,"), encoding="utf-8")
    stale = declare(checkout, "--check")
    assert stale.returncode == 2
    for name in (FINETUNE, "components/question_answering/pipeline.yaml"):
        assert name in stale.stderr
    assert "evaluation.yaml" not in stale.stderr

    assert f"wrote {FINETUNE}" in declare(checkout).stdout
    assert yaml.safe_load((checkout / FINETUNE).read_text(encoding="utf-8"))["inputs"]["lora_r"]["default"] == 9
    assert declare(checkout, "--check").returncode == 0


def test_declare_outside_a_checkout(checkout: Path) -> None:
    (checkout / "pyproject.toml").unlink()
    result = declare(checkout)
    assert result.returncode == 2
    assert "this is not a checkout of the project" in result.stderr


def test_unexpected_words(checkout: Path) -> None:
    result = declare(checkout, "--chekc")
    assert result.returncode == 2
    assert "fix: finetune declare [--check]" in result.stderr
