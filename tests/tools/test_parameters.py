"""docs/parameters.md: a row for each parameter of each component, in step with the parameters."""

import re
import subprocess
import sys

from finetune.azure.declare import COMPONENTS
from finetune.params.components import TASKS
from finetune.params.schema import params_of
from tests.conftest import ROOT
from tests.params.test_schema import NAMES, Component
from tools.parameters import markdown_table


def test_a_table_has_a_row_for_each_parameter() -> None:
    table = markdown_table(Component, {name: f"seen: {name}" for name in NAMES})
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == NAMES
    assert '| `metric` | "loss" \\| "f1" | `f1` | Better metric. | seen: metric |' in rows
    assert "| `data` | uri_folder | required | Rows. | seen: data |" in rows
    assert "| `result` | mlflow_model | output | Result. | seen: result |" in rows


def test_the_page_names_every_parameter_of_every_component() -> None:
    text = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    sections = dict(part.split("\n", 1) for part in text.split("\n## ")[1:])
    assert list(sections) == [f"{task}_{c.name}" for task in TASKS for c in COMPONENTS]
    for task, classes in TASKS.items():
        for c in COMPONENTS:
            rows = re.findall(r"^\| `(\w+)` \|", sections[f"{task}_{c.name}"], flags=re.MULTILINE)
            assert rows == [p.name for p in params_of(vars(classes)[c.name])]


def test_the_page_is_in_step() -> None:
    command = [sys.executable, "-m", "tools.parameters"]
    found = subprocess.run([*command, "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    found = subprocess.run([*command, "--chekc"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and "fix: python -m tools.parameters [--check | --proofs]" in found.stderr
