"""Hostile texts as the value of an input: they reach the program as they are, or are refused before anything runs.

On this machine every one arrives. Azure ML puts values into a command without quoting them; ours stand in single
quotes, between which a shell reads one character alone as more than itself: the single quote.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from finetune import pipeline
from tests.azure_service import steps
from tests.azure_service.test_service import submitted

pytestmark = [pytest.mark.azure, pytest.mark.slow]
HOSTILE = (
    "two words", " before", "after ", "  ", "\t", "a\tb", "a\nb", "\n", "a\r\nb", "$HOME", "${HOME}", "$(id)", "`id`",
    "a;id", "a & id", "a|id", "a && false", "a > x", "a < x", "a\\b", "\\", "\\n", '"', 'say "no"', '"$HOME"', "#no",
    "a # b", "*", "?", "~", "[a]", "{a,b}", "!!", "%s %d", "süß", "日本語", "👩‍👩‍👧", "\u202eabc", "null", "-1",
    "--size", "true", "[]", '{"a": [1, "b"]}', "$[[x]]", "a=b", "0", "1e5", "a" * 3000,
)  # fmt: skip
QUOTES = ("it's", "'", "''", "a'b'c", "'; id; '", "'\"'", "'$(id)'")
CODE = """
import json, sys
print(json.dumps(sys.argv[2:]), file=open(sys.argv[1] + "/seen.json", "w"))
"""


def write_component(folder: Path, count: int) -> Path:
    """Write a component that hands `count` texts to a program, each in single quotes, and a pipeline of it."""
    inputs = {f"text_{number}": {"type": "string"} for number in range(count)}
    words = " ".join(f"'${{{{inputs.{name}}}}}'" for name in inputs)
    spec = {
        "type": "command",
        "name": "texts",
        "inputs": inputs,
        "outputs": {"out": {"type": "uri_folder"}},
        "code": "./code",
        "environment": steps.ENVIRONMENT,
        "command": f"python step.py '${{{{outputs.out}}}}' {words}",
    }
    (folder / "code").mkdir()
    (folder / "code" / "step.py").write_text(CODE)
    steps.write_yaml(folder / "texts.yaml", spec)
    node = {
        "type": "command",
        "component": "file:./texts.yaml",
        "inputs": {name: f"${{{{parent.inputs.{name}}}}}" for name in inputs},
        "outputs": {"out": "${{parent.outputs.out}}"},
    }
    whole = {"inputs": inputs, "outputs": {"out": {"type": "uri_folder"}}, "jobs": {"texts": node}}
    return steps.write_yaml(folder / "pipeline.yaml", {"type": "pipeline", "name": "handed_on", **whole})


def named(texts: tuple[str, ...]) -> dict[str, str]:
    return {f"text_{number}": text for number, text in enumerate(texts)}


def test_on_this_machine_every_text_arrives(tmp_path: Path) -> None:
    texts = HOSTILE + QUOTES
    path = write_component(tmp_path, len(texts))
    words = [word for name, text in named(texts).items() for word in ("--set", f"{name}={text}")]
    pipeline.main([str(path), "--output", str(tmp_path / "out"), *words])
    assert json.loads((tmp_path / "out" / "out" / "seen.json").read_text()) == list(texts)


def test_through_the_service_every_text_without_a_single_quote_arrives(client: Any, tmp_path: Path) -> None:
    from azure.ai.ml import dsl, load_component

    component = load_component(write_component(tmp_path, len(HOSTILE)))

    @dsl.pipeline(default_compute="serverless")
    def handed_on() -> dict[str, Any]:
        return {"out": component(**named(HOSTILE)).outputs.out}

    job = submitted(client, handed_on())
    assert job.status == "Completed"
    client.jobs.download(job.name, output_name="out", download_path=tmp_path)
    assert json.loads((tmp_path / "named-outputs" / "out" / "seen.json").read_text()) == list(HOSTILE)


@pytest.mark.parametrize("text", QUOTES)
def test_a_single_quote_is_refused_before_anything_is_sent(text: str, tmp_path: Path) -> None:
    """By what examples/submit.py asks."""
    module: Any = importlib.import_module("finetune.azure.pipeline_yaml")
    if not hasattr(module, "unfit_for_azure"):
        pytest.skip("texts with a single quote are not refused yet")
    loaded = module.load_pipeline(write_component(tmp_path, 2))
    [fault] = module.unfit_for_azure(loaded, {"text_0": text, "text_1": "plain"})
    assert fault.what.startswith("text_0") and repr(text) in fault.what
