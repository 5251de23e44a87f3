"""Bindings of pipeline YAMLs and the filling of command lines."""

import re
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune.azure.pipeline_yaml import fill_command, load_pipeline
from finetune.core.errors import Fault, ParameterError
from tests.conftest import ROOT

CHILD: dict[str, Any] = {
    "type": "command",
    "inputs": {
        "data": {"type": "uri_file"},
        "folder": {"type": "uri_folder", "optional": True},
        "size": {"type": "integer", "min": 1, "max": 10},
        "mode": {"type": "string", "enum": ["fast", "slow"], "default": "fast"},
    },
    "outputs": {"result": {"type": "uri_folder"}},
    "command": "true",
}
PARENT: dict[str, Any] = {
    "type": "pipeline",
    "inputs": {
        "data": {"type": "uri_file"},
        "model": {"type": "mlflow_model"},
        "count": {"type": "integer", "default": 4},
        "maybe": {"type": "integer", "optional": True},
        "mode": {"type": "string", "enum": ["fast", "slow", "other"], "default": "fast"},
    },
    "outputs": {"result": {"type": "uri_folder"}, "model": {"type": "mlflow_model"}},
    "jobs": {
        "first": {
            "component": "file:./child.yaml",
            "inputs": {"data": "${{parent.inputs.data}}", "size": "${{parent.inputs.count}}"},
            "outputs": {"result": "${{parent.outputs.result}}"},
        },
        "second": {
            "component": "file:./child.yaml",
            "inputs": {"data": "${{parent.inputs.data}}", "size": 3, "folder": "${{parent.jobs.first.outputs.result}}"},
        },
        "export": {"component": "file:./export.yaml", "outputs": {"model": "${{parent.outputs.model}}"}},
    },
}
EXPORT = {"type": "command", "outputs": {"model": {"type": "mlflow_model"}}, "command": "true"}

# name of the case: (place in a job, value there or None for nothing, place of the fault, the fault)
CASES: dict[str, tuple[str, Any, str, str]] = {
    "unknown_parent_input": (
        "inputs.size",
        "${{parent.inputs.cuont}}",
        ".inputs.size",
        "the pipeline has no input 'cuont'; did you mean count?",
    ),
    "wrong_job": (
        "inputs.folder",
        "${{parent.jobs.frist.outputs.result}}",
        ".inputs.folder",
        "there is no job 'frist'; did you mean first?",
    ),
    "wrong_job_output": (
        "inputs.folder",
        "${{parent.jobs.first.outputs.resutl}}",
        ".inputs.folder",
        "first has no output 'resutl'; did you mean result?",
    ),
    "unknown_child_input": (
        "inputs.sizes",
        3,
        ".inputs.sizes",
        "the component has no input 'sizes'; did you mean size?",
    ),
    "nothing_like_it": ("inputs.xyz", 3, ".inputs.xyz", "the component has no input 'xyz'"),
    "required_input_not_bound": ("inputs.size", None, ".inputs", "required input 'size' is not bound"),
    "optional_to_required": (
        "inputs.size",
        "${{parent.inputs.maybe}}",
        ".inputs.size",
        "the pipeline's input 'maybe' is optional, but the component requires it",
    ),
    "file_to_folder": (
        "inputs.folder",
        "${{parent.inputs.data}}",
        ".inputs.folder",
        "'data' is of type uri_file, the component takes uri_folder",
    ),
    "model_to_file": (
        "inputs.data",
        "${{parent.inputs.model}}",
        ".inputs.data",
        "'model' is of type mlflow_model, the component takes uri_file",
    ),
    "job_output_to_file": (
        "inputs.data",
        "${{parent.jobs.export.outputs.model}}",
        ".inputs.data",
        "'model' is of type mlflow_model, the component takes uri_file",
    ),
    "wider_enum": (
        "inputs.mode",
        "${{parent.inputs.mode}}",
        ".inputs.mode",
        "the pipeline allows other, the component only fast, slow",
    ),
    "literal_not_in_enum": (
        "inputs.mode",
        "fats",
        ".inputs.mode",
        "'fats' must be one of fast, slow; did you mean fast?",
    ),
    "literal_too_large": ("inputs.size", 99, ".inputs.size", "'99' must be at most 10"),
    "literal_too_small": ("inputs.size", 0, ".inputs.size", "'0' must be at least 1"),
    "literal_no_integer": ("inputs.size", 1.5, ".inputs.size", "'1.5' must be an integer"),
    "not_a_binding": (
        "inputs.folder",
        "${{parent.job.first.outputs.result}}",
        ".inputs.folder",
        "${{parent.job.first.outputs.result}} is not a binding that can be followed",
    ),
    "unknown_pipeline_output": (
        "outputs.result",
        "${{parent.outputs.resutl}}",
        ".outputs.result",
        "${{parent.outputs.resutl}} is not an output of the pipeline; did you mean result?",
    ),
    "unknown_child_output": (
        "outputs.reslut",
        "${{parent.outputs.result}}",
        ".outputs.reslut",
        "the component has no output 'reslut'; did you mean result?",
    ),
    "folder_to_model_output": (
        "outputs.result",
        "${{parent.outputs.model}}",
        ".outputs.result",
        "'result' is of type uri_folder, the component takes mlflow_model",
    ),
    "compute": (
        "compute",
        "${{parent.inputs.cuont}}",
        "",
        "the pipeline has no input 'cuont'; did you mean count?",
    ),
    "resources": (
        "resources.instance_count",
        "${{parent.inputs.cuont}}",
        "",
        "the pipeline has no input 'cuont'; did you mean count?",
    ),
    "distribution": (
        "distribution.process_count_per_instance",
        "${{parent.inputs.cuont}}",
        "",
        "the pipeline has no input 'cuont'; did you mean count?",
    ),
}


def write_pipeline(folder: Path, spec: dict[str, Any]) -> Path:
    """Write a pipeline and the components that its jobs use."""
    for name, content in (("pipeline", spec), ("child", CHILD), ("export", EXPORT)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return folder / "pipeline.yaml"


def changed(spec: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with the value at a dotted place, or without that place where the value is None."""
    result = deepcopy(spec)
    *folders, name = place.split(".")
    entry = result
    for folder in folders:
        entry = entry.setdefault(folder, {})
    if value is None:
        del entry[name]
    else:
        entry[name] = value
    return result


SEVERAL = "several jobs write it"


def faults_of(path: Path) -> list[Fault]:
    with pytest.raises(ParameterError) as caught:
        load_pipeline(path)
    return list(caught.value.faults)


def test_the_base_of_these_tests_is_clean(tmp_path: Path) -> None:
    pipeline = load_pipeline(write_pipeline(tmp_path, PARENT))
    assert [step.name for step in pipeline.steps] == ["first", "export", "second"]


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_binding_is_a_fault(tmp_path: Path, case: str) -> None:
    place, value, where, what = CASES[case]
    path = write_pipeline(tmp_path, changed(PARENT, f"jobs.second.{place}", value))
    found = [fault for fault in faults_of(path) if fault.what != SEVERAL]  # some cases bind a second job to an output
    assert found == [Fault(what, where=f"pipeline.yaml, second{where}")]


def test_two_jobs_that_write_one_output(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path, changed(PARENT, "jobs.second.outputs.result", "${{parent.outputs.model}}"))
    assert Fault(SEVERAL, where="pipeline.yaml, outputs.model") in faults_of(path)


def test_command_that_names_what_the_component_lacks(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path, PARENT)
    child = tmp_path / "child.yaml"
    child.write_text(yaml.safe_dump({**yaml.safe_load(child.read_text()), "command": "run ${{inputs.sise}}"}))
    assert "${{inputs.sise}} is not an input or output of the component; did you mean inputs.size?" in {
        fault.what for fault in faults_of(path)
    }


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    spec = deepcopy(PARENT)
    for case, (place, value, _, _) in CASES.items():
        spec["jobs"][case] = changed(PARENT["jobs"]["second"], place, value)
    expected = {Fault(what, where=f"pipeline.yaml, {case}{where}") for case, (_, _, where, what) in CASES.items()}
    found = [fault for fault in faults_of(write_pipeline(tmp_path, spec)) if fault.what != SEVERAL]
    assert set(found) == expected
    assert len(found) == len(CASES)


def test_an_output_of_the_pipeline_that_no_job_writes(tmp_path: Path) -> None:
    path = write_pipeline(tmp_path, changed(PARENT, "outputs.other", {"type": "uri_folder"}))
    assert faults_of(path) == [Fault("no job writes it", where="pipeline.yaml, outputs.other")]


def cycle() -> dict[str, Any]:
    return changed(PARENT, "jobs.first.inputs.folder", "${{parent.jobs.second.outputs.result}}")


def test_jobs_that_wait_for_each_other(tmp_path: Path) -> None:
    [fault] = faults_of(write_pipeline(tmp_path, cycle()))
    assert fault.where == "pipeline.yaml, jobs"
    assert fault.what.startswith("they wait for each other: ") and {"first", "second"} <= set(fault.what.split())


def test_a_cycle_is_reported_with_the_other_faults(tmp_path: Path) -> None:
    text = "\n".join(map(str, faults_of(write_pipeline(tmp_path, changed(cycle(), "jobs.second.inputs.size", 99)))))
    assert "wait for each other" in text
    assert "'99' must be at most 10" in text


def test_a_component_that_is_missing(tmp_path: Path) -> None:
    spec = changed(PARENT, "jobs.second.component", "file:./nowhere.yaml")
    [fault] = faults_of(write_pipeline(tmp_path, spec))
    assert f"{tmp_path / 'nowhere.yaml'} is missing" in fault.what


def test_a_missing_component_is_reported_with_the_other_faults(tmp_path: Path) -> None:
    spec = changed(PARENT, "jobs.export.component", "file:./nowhere.yaml")
    text = "\n".join(map(str, faults_of(write_pipeline(tmp_path, changed(spec, "jobs.second.inputs.size", 99)))))
    assert "nowhere.yaml is missing" in text
    assert "'99' must be at most 10" in text


@pytest.mark.parametrize(
    ("text", "what"),
    [("- a\n", "its YAML is not a mapping"), ("a: [", "is not valid YAML"), ("type: command\n", "has no jobs")],
)
def test_a_file_that_is_no_pipeline(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text, encoding="utf-8")
    assert what in str(faults_of(path)[0])


def test_steps_are_ordered_by_what_they_need(tmp_path: Path) -> None:
    spec = deepcopy(PARENT)
    spec["jobs"] = dict(reversed(spec["jobs"].items()))
    assert [s.name for s in load_pipeline(write_pipeline(tmp_path, spec)).steps] == ["export", "first", "second"]


@pytest.mark.parametrize("path", sorted((ROOT / "components").glob("*/pipeline.yaml")), ids=lambda p: p.parent.name)
def test_a_shipped_pipeline_is_clean_and_uses_every_input(path: Path) -> None:
    pipeline = load_pipeline(path)
    steps = ["model_import", "datapreprocess", "finetune", "evaluation"]
    assert [step.name for step in pipeline.steps] == [f"{path.parent.name}_{step}" for step in steps]
    jobs = yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"], width=10_000)
    assert set(re.findall(r"\$\{\{parent\.inputs\.(\w+)\}\}", jobs)) == set(pipeline.inputs)


def test_there_are_shipped_pipelines() -> None:
    assert (ROOT / "components" / "question_answering" / "pipeline.yaml").is_file()


def test_a_group_goes_where_its_input_is_absent() -> None:
    command = "run $[[--a ${{inputs.a}}]] $[[--b ${{ inputs.b }}]] $[[--c ${{inputs.c}}]] --out ${{outputs.out}}"
    assert fill_command(command, {"a": None, "b": "2", "c": None}, {"out": "/o"}).split() == [
        "run",
        "--b",
        "2",
        "--out",
        "/o",
    ]


def test_a_group_goes_where_one_of_its_inputs_is_absent() -> None:
    command = "run $[[--pair ${{inputs.a}}\n${{inputs.b}}]] end"
    assert fill_command(command, {"a": "1", "b": None}, {}).split() == ["run", "end"]
    assert fill_command(command, {"a": "1", "b": "2"}, {}).split() == ["run", "--pair", "1", "2", "end"]


def test_an_empty_value_is_a_word() -> None:
    assert fill_command("run $[[--a ${{inputs.a}}]]", {"a": ""}, {}) == "run --a ''"


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
@example("two words")
@example('it\'s "quoted" \\ here')
@example("$(echo gone) `echo gone` $HOME ${{inputs.other}} $[[x]] ]]")
@example("-n")
@example("Zürich 東京 🙂\nline two\n")
@example("")
def test_a_value_reaches_the_command_unchanged(value: str) -> None:
    command = fill_command("printf '<%s>' $[[${{inputs.value}}]] ${{outputs.out}}", {"value": value}, {"out": value})
    shown = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout
    assert shown.decode() == f"<{value}><{value}>"
