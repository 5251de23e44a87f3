"""The five YAMLs of each task, read and validated by azure-ai-ml."""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune.params.components import TASKS
from finetune.params.schema import params_of
from tests.conftest import ROOT

FILES = sorted((ROOT / "components").glob("*/*.yaml"))
COMMANDS = [path for path in FILES if path.stem != "pipeline"]


def load(path: Path) -> Any:
    from azure.ai.ml import load_component

    logging.disable(logging.WARNING)  # the SDK warns of its own experimental classes
    try:
        return load_component(path)
    finally:
        logging.disable(logging.NOTSET)


def spec(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def test_there_are_five_of_each_task() -> None:
    names = ["datapreprocess", "evaluation", "finetune", "model_import", "pipeline"]
    tasks = ["generative_question_answering", "question_answering", "token_classification", "translation"]
    assert [(path.parent.name, path.stem) for path in FILES] == [(task, name) for task in tasks for name in names]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}_{path.stem}")
def test_azure_accepts_it(path: Path) -> None:
    component = load(path)
    result = component._validate()
    assert result.passed, result.error_messages
    assert component.name == f"{path.parent.name}_{path.stem}"
    assert component.type == ("pipeline" if path.stem == "pipeline" else "command")


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: f"{path.parent.name}_{path.stem}")
def test_azure_reads_the_types_and_defaults_that_the_parser_has(path: Path) -> None:
    inputs = load(path).inputs
    declared = {p.name: p for p in params_of(vars(TASKS[path.parent.name])[path.stem]) if not p.output}
    assert set(inputs) == set(declared)
    for name, p in declared.items():
        assert inputs[name].type == ("string" if p.kind == "boolean" else p.kind)
        assert bool(inputs[name].optional) != p.required
        assert inputs[name].default == (p.default_text if p.kind == "boolean" else p.default)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}_{path.stem}")
def test_folders_and_files_are_mounted(path: Path) -> None:
    """As Azure ML gets it: outputs of a machine that goes away are kept, inputs can't be written."""
    sent = load(path)._to_rest_object().properties.component_spec
    ports = {name: entry["mode"] for name, entry in sent["inputs"].items() if "mode" in entry}
    assert ports == {
        n: "ro_mount" for n, e in sent["inputs"].items() if e["type"] not in ("string", "integer", "number")
    }
    assert {entry["mode"] for entry in sent["outputs"].values()} == {"rw_mount"}


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: f"{path.parent.name}_{path.stem}")
def test_the_environment_is_a_file_of_the_checkout(path: Path) -> None:
    text = spec(path)["environment"]
    assert text.startswith("file:")
    folder = (path.parent / text.removeprefix("file:")).resolve().parent
    assert load(path).environment.path == folder and (folder / "Dockerfile").is_file()


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: f"{path.parent.name}_{path.stem}")
def test_code_and_includes_exist(path: Path) -> None:
    assert (path.parent / spec(path)["code"] / "finetune" / "__init__.py").is_file()
    assert all((path.parent / folder).is_dir() for folder in spec(path)["additional_includes"])


@pytest.mark.parametrize("pipeline", sorted(set(FILES) - set(COMMANDS)), ids=lambda path: path.parent.name)
def test_the_jobs_are_the_four_components(pipeline: Path) -> None:
    jobs = spec(pipeline)["jobs"].values()
    components = {path for path in COMMANDS if path.parent == pipeline.parent}
    assert {pipeline.parent / job["component"].removeprefix("file:./") for job in jobs} == components


def test_the_names_of_the_published_pipelines_are_keywords() -> None:
    """Those of the evaluation, which the public examples pass; an unknown keyword is an error."""
    from azure.ai.ml import Input
    from azure.ai.ml.exceptions import UnexpectedKeywordError

    data = Input(type="uri_file", path="azureml://datastores/workspaceblobstore/paths/rows.jsonl")
    values = {
        "compute_model_evaluation": "gpu-cluster-big",
        "instance_type_model_evaluation": "Standard_NC4as_T4_v3",
        "evaluation_config": data,
        "evaluation_config_params": '{"metrics": ["accuracy"]}',
        "eval_accumulation_steps": -1,
        "train_file_path": data,
    }
    for task, name in (("question_answering", "QuestionAnswering"), ("token_classification", "NamedEntityRecognition")):
        step = load(ROOT / "components" / task / "pipeline.yaml")(task_name=name, **values)
        assert set(values) < set(step._build_inputs())
        with pytest.raises(UnexpectedKeywordError, match="task_nmae"):
            load(ROOT / "components" / task / "pipeline.yaml")(task_nmae=name)
        waits = load(ROOT / "components" / task / "model_import.yaml")(validation_output=data)
        assert "validation_output" in waits.inputs
