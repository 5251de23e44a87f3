"""One dataclass -> parser, help, YAML entries: every fault of a command line at once, in the user's own words."""
# ruff: noqa: RUF009  (port() only describes the field)

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.azure.interface import command_line, from_yaml, yaml_input, yaml_inputs, yaml_outputs
from finetune.core.errors import ParameterError
from finetune.params.components import TASKS, ComputeParams
from finetune.params.finetune import QuestionAnsweringParams
from finetune.params.schema import (
    SECRET_ADDRESS,
    SECRETS,
    Param,
    help_text,
    param,
    params_of,
    parse,
    port,
    to_text,
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """Model."""

    name: str | None = param(None, "Name.")
    size: int = param(8, "Size, of which 100% is used.", min=-1, max=64)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training."""

    rate: float = param(0.5, "Rate.", min=0)
    warm: bool = param(False, "Warm.")
    metric: Literal["loss"] = param("loss", "Metric.")
    seed: int = param(42, "Seed.", min=1)


@dataclass(frozen=True, kw_only=True)
class Base(Model, Training):
    """Folders."""

    data: Path = port("uri_folder", "Rows.")
    config: Path | None = port("uri_file", "Config.", optional=True)
    result: Path = port("mlflow_model", "Result.", output=True)


@dataclass(frozen=True, kw_only=True)
class Component(Base):
    """Component."""

    metric: Literal["loss", "f1"] = param("f1", "Better metric.")  # type: ignore[assignment]


FOLDERS = ["--data", "in", "--result", "out"]
NAMES = ["name", "size", "rate", "warm", "metric", "seed", "data", "config", "result"]
CLASSES = [
    *(vars(TASKS["question_answering"])[c] for c in ("model_import", "datapreprocess", "finetune", "evaluation"))
]


def parsed(*words: str) -> Component:
    return parse(Component, [*words, *FOLDERS], "prog")


def faults(*words: str) -> list[str]:
    with pytest.raises(ParameterError) as raised:
        parsed(*words)
    return [fault.what for fault in raised.value.faults]


OF_NO_USE: Any = {
    "default": None, "required": False, "output": False, "enum": (), "doc": "", "minimum": None, "maximum": None,
    "group": "",
}  # fmt: skip
NAMED = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
LONGEST = 60  # characters of a name, of up to 4 bytes each: file systems take 255 bytes


def value_of(p: Param) -> st.SearchStrategy[Any]:
    """Any valid value of a parameter."""
    low, high = p.minimum, p.maximum
    match p.kind:
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(None if low is None else int(low), None if high is None else int(high))
        case "number":
            return st.floats(low, high, allow_nan=False, allow_infinity=False)
        case "string" if p.name in SECRETS:
            return st.from_regex(SECRET_ADDRESS, fullmatch=True)
        case "string":
            return st.sampled_from(p.enum) if p.enum else st.text(NAMED, max_size=LONGEST)
        case _:
            return st.text(NAMED, min_size=1, max_size=LONGEST).map(Path)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@settings(deadline=None)
@given(data=st.data())
def test_every_valid_value_parses_back_to_itself(cls: type, data: st.DataObject) -> None:
    values = {p.name: (p.required, value_of(p)) for p in params_of(cls)}
    required = {name: value for name, (needed, value) in values.items() if needed}
    optional = {name: value for name, (needed, value) in values.items() if not needed}
    drawn = data.draw(st.fixed_dictionaries(required, optional=optional))
    assert parse(cls, [f"--{name}={to_text(value)}" for name, value in drawn.items()], "prog") == cls(**drawn)


def test_defaults_and_types() -> None:
    component = parsed()
    assert component == Component(data=Path("in"), result=Path("out"))
    assert (component.size, component.warm, component.metric, component.config) == (8, False, "f1", None)


def test_words_and_equals_signs() -> None:
    assert parsed("--name", "a b", "--size=3").name == "a b"
    assert parsed("--size=3", "--rate", "1").size == 3
    assert parsed("--name=--x=y").name == "--x=y"
    assert parsed("--name=").name == ""


@pytest.mark.parametrize(("words", "value"), [(["--size", "-1"], -1), (["--size=-1"], -1)])
def test_negative_numbers_are_values(words: list[str], value: int) -> None:
    assert parsed(*words).size == value


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("True", True), ("TRUE", True), ("false", False), ("FALSE", False)]
)
def test_booleans_in_any_case(text: str, value: bool) -> None:
    assert parsed("--warm", text).warm is value


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        *(("warm", text, "must be true or false") for text in ("yes", "1", "0", "on", "", "truee")),
        *(("size", text, "must be an integer") for text in ("1.5", "1e3", "many", "", "nan", "inf")),
        ("size", "-2", "must be at least -1"),
        ("size", "65", "must be at most 64"),
        ("seed", "0", "must be at least 1"),
        ("rate", "fast", "must be a number"),
        ("rate", "-0.1", "must be at least 0"),
        *(("rate", text, "must be finite") for text in ("nan", "NaN", "inf", "-inf", "1e999")),
        ("metric", "los", "must be one of loss, f1; did you mean loss?"),
        ("metric", "F1 score", "must be one of loss, f1"),
    ],
)
def test_bad_values(name: str, text: str, reason: str) -> None:
    assert faults(f"--{name}={text}") == [f"--{name} {text!r} {reason}"]


def test_unknown_names_get_the_nearest_known_one() -> None:
    with pytest.raises(ParameterError, match="unknown parameter --learning_rte; did you mean --learning_rate"):
        parse(QuestionAnsweringParams, ["--learning_rte", "1e-4"], "prog")
    assert faults("--qqqq", "1") == ["unknown parameter --qqqq"]
    assert faults("--siz", "3") == ["unknown parameter --siz; did you mean --size?"]  # no abbreviations


def test_missing_values() -> None:
    assert faults("--size") == ["--size has no value"]
    assert faults("--size", "--rate", "1") == ["--size has no value"]
    assert faults("--sizes", "--rate", "1") == ["--sizes has no value, and is unknown; did you mean --size?"]


def test_all_faults_at_once_each_with_what_to_type() -> None:
    words = ["--sise", "3", "stray", "--warm", "yes", "--rate=nan", "--size", "99", "--data", "in", "--metric"]
    with pytest.raises(ParameterError) as raised:
        parse(Component, words, "prog")
    assert [(fault.what, fault.fix) for fault in raised.value.faults] == [
        ("unknown parameter --sise; did you mean --size?", ""),
        ("unexpected word 'stray'", "write every parameter as --name value"),
        ("--metric has no value", "--metric f1"),
        ("--warm 'yes' must be true or false", "--warm false"),
        ("--rate 'nan' must be finite", "--rate 0.5"),
        ("--size '99' must be at most 64", "--size 8"),
        ("--result is missing", "--result <mlflow_model>"),
    ]
    assert all(f"parameter error: {fault.what}" in str(raised.value) for fault in raised.value.faults)


def test_order_follows_the_class_statement_and_a_redeclared_field_keeps_its_place() -> None:
    assert [p.name for p in params_of(Base)] == NAMES
    assert [p.name for p in params_of(Component)] == NAMES
    metric = params_of(Component)[NAMES.index("metric")]
    assert (metric.default, metric.enum, metric.doc, metric.group) == (
        "f1",
        ("loss", "f1"),
        "Better metric.",
        "Training",
    )


def test_help_has_every_parameter_in_order_under_its_group() -> None:
    text = help_text(Component, "prog")
    usage, *sections = text.split("\n\n")
    assert usage == "usage: prog --NAME VALUE ..."
    assert [section.split(":")[0] for section in sections] == ["Model", "Training", "Folders"]
    starts = [text.rindex(f"  --{name} ") for name in NAMES]
    assert starts == sorted(starts)
    for words in ("--warm {true,false}", "(default: 0.5)", "(optional)", "(required)", "100% is used"):
        assert words in " ".join(text.split())


def test_help_is_printed_even_with_other_faults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(Component, ["--nonsense", "--help"], "prog")
    assert raised.value.code == 0
    assert capsys.readouterr().out == help_text(Component, "prog") + "\n"


def test_yaml_entries() -> None:
    inputs = yaml_inputs(Component)
    assert list(inputs) == NAMES[:-1]
    assert inputs["warm"] == {
        "type": "string",
        "description": "Warm.",
        "optional": True,
        "default": "false",
        "enum": ["true", "false"],
    }
    assert inputs["size"] == {
        "type": "integer",
        "description": "Size, of which 100% is used.",
        "optional": True,
        "default": 8,
        "min": -1,
        "max": 64,
    }
    assert inputs["name"] == {"type": "string", "description": "Name.", "optional": True}
    assert inputs["data"] == {"type": "uri_folder", "mode": "ro_mount", "description": "Rows."}
    assert inputs["config"] == {
        "type": "uri_file",
        "mode": "ro_mount",
        "description": "Config.",
        "optional": True,
    }
    assert yaml_outputs(Component) == {"result": {"type": "mlflow_model", "mode": "rw_mount", "description": "Result."}}


def test_command_line_is_one_line_with_optional_inputs_in_groups() -> None:
    assert command_line(Component, "package.module", "--task x") == (
        "python -m package.module --task x $[[--name='${{inputs.name}}']] $[[--size=${{inputs.size}}]] "
        "$[[--rate=${{inputs.rate}}]] $[[--warm=${{inputs.warm}}]] $[[--metric=${{inputs.metric}}]] "
        "$[[--seed=${{inputs.seed}}]] --data='${{inputs.data}}' $[[--config='${{inputs.config}}']] "
        "--result='${{outputs.result}}'"
    )


@pytest.mark.parametrize("value", ["--help", "-h", "--size", "--size=3", "-5", "--", "-", "=", ""])
def test_a_value_is_never_a_parameter(value: str) -> None:
    """Written as one word with its parameter, whatever it begins with."""
    assert parsed(f"--name={value}").name == value


def test_help_is_where_a_parameter_could_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed("--name", "-h").name == "-h"
    for words in (["-h"], ["--size", "3", "-h"], ["--size", "--help"], ["--size=3", "-h"], ["nonsense", "-h"]):
        with pytest.raises(SystemExit):
            parse(Component, words, "prog")
        assert "--size INTEGER" in capsys.readouterr().out


@pytest.mark.parametrize("cls", [*CLASSES, ComputeParams, Component], ids=lambda cls: cls.__name__)
def test_a_yaml_entry_reads_back_as_the_same_parameter(cls: type) -> None:
    def essence(p: Param) -> tuple[Any, ...]:
        return p.name, p.kind, p.default_text, p.required, p.enum, p.doc, p.minimum, p.maximum

    inputs = [p for p in params_of(cls) if not p.output]
    assert inputs
    for p in inputs:
        assert essence(from_yaml(p.name, yaml_input(p))) == essence(p)


def test_paths_that_no_file_system_has() -> None:
    port, name = Param("folder", "uri_folder", **OF_NO_USE), Param("huggingface_id", "string", **OF_NO_USE)
    text = Param("key", "string", **OF_NO_USE)
    for known in (port, name, text):
        with pytest.raises(ValueError, match="holds a zero character"):
            known.convert("a\0b")
    for long in ("a" * 256, "é" * 128, "a/" * 2048 + "b"):
        for known in (port, name):
            with pytest.raises(ValueError, match="longer than a path can be"):
                known.convert(long)
        assert text.convert(long) == long
    assert port.convert("/".join(["a" * 255] * 15)) == Path("/".join(["a" * 255] * 15))
