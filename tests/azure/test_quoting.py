"""Values in shell commands: as their own characters, or refused, wherever they stand; never as code."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from finetune import check
from finetune.azure import quoting
from finetune.azure.pipeline_yaml import load_pipeline, unfit_for_azure
from finetune.core.errors import ParameterError
from finetune.pipeline import main
from tests.conftest import ROOT

X = "${{inputs.x}}"
# What stands around a reference -> what a value is printed with, after printf '<%s>'.
CARRIED = {
    X: ("", ""),
    f"a{X}b": ("a", "b"),
    f"'{X}'": ("", ""),
    f"'a {X} b'": ("a ", " b"),
    f"'a'{X}'b'": ("a", "b"),
    f'"{X}"': ("", ""),
    f'"it\'s {X} \\" b"': ("it's ", ' " b'),
    f'"a"\'"\'{X}"\'"': ('a"', "'"),
    f"\\\\{X}": ("\\", ""),
    f"\\'{X}\\\"": ("'", '"'),
    f'"$(printf %s {X}.)"': ("", "."),
    f'"$(printf %s "<"\'{X}\' ")" | cat)"': ("<", ")"),
    f'"$EMPTY${{EMPTY}}"{X}': ("", ""),
    f"{X} # it's no comment that matters": ("", ""),
    f"{X}#b": ("", "#b"),
    f"$EMPTY{X}~": ("", "~"),
}
REFUSED = (
    f"a # {X}",
    f"\\{X}",
    f"${X}",
    f'"\\{X}"',
    f"`printf %s {X}`",
    f"\"`printf %s '{X}'`\"",
    f"${{EMPTY:-{X}}}",
    f"$(({X}))",
    f"a; (({X}))",
    f"<<E\n{X}\nE",
    f"<<'E'\n{X}\nE",
    f"$'{X}'",
    f'$"{X}"',
    f'"$(case a in a) printf "{X}";; esac)"',
    f"$(date)#'{X}'",
    f"\\ #'{X}'",
    f'"${{HOME:+}}"{X}',
    f'a; eval "printf {X}"',
    f"a && if true; then eval printf {X}; fi",
    f'a; bash -c "printf {X}"',
    f"a; sh -eu -o pipefail -c 'printf {X}'",
    f"a; bash -c -o pipefail 'printf {X}'",
    f"a; trap 'printf {X}' EXIT",
    f"a; python3 -c 'print(\"{X}\")'",
)
VALUES = (
    "'; touch owned; '",
    '"; touch owned; "',
    "; touch owned #",
    "$(touch owned)",
    "`touch owned`",
    "\ntouch owned\n",
    "'\"'; touch owned; '\"'",
    "\\'; touch owned; \\'",
    "a[$(touch owned)]",
    ") ; touch owned ; (",
    "E\ntouch owned\nE",
    "-n ${HOME} * ~ ! {a,b} ${{inputs.x}}",
    "Zürich 東京 🙂\r\n\t",
    "plain",
    "",
)


def printed(command: str, value: str, shell: str, folder: Path) -> bytes:
    """What a shell prints for the command with the value; nothing in the value may have been run."""
    filled = quoting.filled(f"printf '<%s>' {command}", {"inputs.x": value})
    done = subprocess.run([shell, "-c", filled], cwd=folder, capture_output=True, check=True)
    assert not (folder / "owned").exists()
    return done.stdout


@pytest.mark.parametrize("command", CARRIED)
def test_hostile_values_reach_the_process_as_they_are(command: str, tmp_path: Path) -> None:
    before, after = CARRIED[command]
    for value in VALUES:
        wanted = f"<{before}{value}{after}>".encode()
        assert [printed(command, value, shell, tmp_path) for shell in ("bash", "sh")] == [wanted, wanted]


@pytest.mark.parametrize("command", REFUSED)
def test_where_no_value_can_be_quoted_it_is_refused(command: str) -> None:
    with pytest.raises(ParameterError, match=r"\$\{\{inputs\.x\}\} stands where no value can be quoted"):
        quoting.filled(f"printf '<%s>' {command}", {"inputs.x": "a"})


def test_what_is_only_named_like_shell_code_is_not_refused(tmp_path: Path) -> None:
    assert printed(f"eval --eval case sh run.sh python eval.py {X}", "$(touch owned)", "bash", tmp_path).endswith(
        b"<eval.py><$(touch owned)>"
    )
    passed = f'; bash -c \'printf "<%s>" "$1"\' name {X}'
    assert printed(passed, "$(touch owned)", "bash", tmp_path) == b"<><$(touch owned)>"


def test_a_value_that_no_process_can_be_given() -> None:
    with pytest.raises(ParameterError, match=r"inputs\.x holds the character NUL"):
        quoting.filled(X, {"inputs.x": "a\0b"})


PIECES = st.lists(
    st.sampled_from(
        [X, "'", '"', "\\", "$", "`", "$(", ")", "(", "#", " ", "\n", "a", ";", "|", "<<<", "<<E\n", "${HOME}", "${A:-",
         "$((", "))", "case b in b) ", " esac", "eval ", "sh -c ", "printf %s ", "{", "}", "[", "=", "\t", "\r", "$'"]
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    pieces=PIECES,
    value=st.sampled_from(VALUES) | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)
@example(pieces=["'a ", X, "'"], value="'; touch owned; '")
@example(pieces=["# ", X], value="\ntouch owned\n")
@example(pieces=["\\ #'", X, "'"], value=";touch owned;")
@example(pieces=["a\r#'", X, "'"], value=";touch owned;")
@example(pieces=["sh -x' -c a' ", X], value=";touch owned;")
def test_any_command_prints_a_value_as_it_prints_a_plain_word(
    pieces: list[str], value: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assume("$$" not in "".join(pieces))  # the number of the shell's own process
    command = f"printf '<%s>' {X} {''.join(pieces)}"
    folder = tmp_path_factory.mktemp("shell")
    try:
        filled = [quoting.filled(command, {"inputs.x": text}) for text in ("QQZ", value)]
    except ParameterError:
        return
    plain, other = (
        subprocess.run(["bash", "-c", text], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        for text in filled
    )
    assert not (folder / "owned").exists()
    if plain.returncode == 0 and not filled[0].endswith("\\"):  # at its end bash takes it for either
        assert other.stdout == plain.stdout.replace(b"QQZ", value.encode())


# Pipelines


def write_step(folder: Path, command: str, **given: Any) -> Path:
    """A pipeline of one step, whose input x is that of the pipeline."""
    out = {"out": {"type": "uri_folder"}}
    component = {"type": "command", "inputs": {"x": {"type": "string"}}, "outputs": out, "code": "./code"}
    bound = {"x": "${{parent.inputs.x}}"}
    job = {"component": "file:./one.yaml", "inputs": bound, "outputs": {"out": "${{parent.outputs.out}}"}}
    pipeline = {"type": "pipeline", "inputs": {"x": {"type": "string", "default": "a", **given}}, "outputs": out}
    (folder / "code").mkdir(exist_ok=True)
    (folder / "one.yaml").write_text(yaml.safe_dump({**component, "command": command}))
    (folder / "pipeline.yaml").write_text(yaml.safe_dump({**pipeline, "jobs": {"one": job}}))
    return folder / "pipeline.yaml"


def test_a_run_gives_a_step_the_value_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    value = f"$(touch {tmp_path}/owned) '; touch {tmp_path}/owned; '"
    file = write_step(tmp_path, f"printf %s 'a {X} b' > ${{{{outputs.out}}}}/'of step'")
    main([str(file), "--output", "out", "--set", f"x={value}"])
    assert (tmp_path / "out" / "out" / "of step").read_text() == f"a {value} b"
    assert not (tmp_path / "owned").exists()


def test_a_pipeline_with_a_place_that_cannot_be_quoted_is_refused(tmp_path: Path) -> None:
    file = write_step(tmp_path, f"true # it's {X}\ncat <<E\n{X}\nE")
    with pytest.raises(ParameterError) as caught:
        load_pipeline(file)
    assert {(f.what[:14], f.where) for f in caught.value.faults} == {(f"{X} ", "pipeline.yaml, one.command")}


@pytest.mark.parametrize(("command", "value"), [(f"echo '{X}'", "it's"), (f'echo "{X}"', "$(pwd)")])
def test_a_default_that_azure_ml_would_not_carry_is_refused(command: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"x: .* can't be given to one by Azure ML"):
        load_pipeline(write_step(tmp_path, command, default=value))
    assert load_pipeline(write_step(tmp_path, f"echo {X}", default=value))


def test_the_check_notes_what_azure_ml_would_not_carry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_step(tmp_path, f"echo '{X}' # don't\n")
    check.main([str(file), "--set", "x=its"])
    assert capsys.readouterr().out == ""
    check.main([str(file), "--set", "x=it's"])
    assert "note: it runs here, but x: \"it's\" can't be given to one by Azure ML" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "components").glob("*/pipeline.yaml")), ids=lambda p: p.parent.name)
def test_no_input_of_ours_gets_out_of_its_quotes_on_azure(path: Path) -> None:
    pipeline = load_pipeline(path)
    texts = {p.name: "it's" for p in pipeline.inputs.values() if p.kind in ("string", "uri_file") and not p.enum}
    in_commands = {name for name in texts if not name.startswith(("compute_", "instance_type_", "shm_size_"))}
    assert {fault.what.partition(":")[0] for fault in unfit_for_azure(pipeline, texts)} == in_commands
    assert (
        unfit_for_azure(pipeline, {name: "/o'brien/two words" for name, p in pipeline.inputs.items() if p.is_port})
        == []
    )
