"""The version of a release follows from its content alone; each asset comes after what it needs."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune import __version__
from finetune.azure.service.release import _entity, find_release, reference
from finetune.core.errors import ParameterError
from tests.conftest import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of all that is registered."""
    for name in ("src", "components", "environments", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return tmp_path


def version(root: Path) -> str:
    return find_release(root).version


def test_version_is_that_of_the_content(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = version(checkout)
    assert before.startswith(f"{__version__}-")
    assert before == version(ROOT)  # another place, other times
    for path in checkout.rglob("*"):
        os.utime(path, (0, 0))
    (checkout / "src" / "finetune" / "__pycache__").mkdir()
    (checkout / "src" / "finetune" / "__pycache__" / "run.pyc").write_bytes(b"compiled")
    (checkout / "docs").mkdir()
    (checkout / "docs" / "new.md").touch()
    assert version(checkout) == before


@pytest.mark.parametrize(
    "name",
    [
        "src/finetune/run.py",
        "configs/deepspeed/zero2.json",
        "components/token_classification/evaluation.yaml",
        "environments/gpu/requirements.txt",
        "environments/cpu/environment.yaml",
        "environments/serving/Dockerfile",
    ],
)
def test_version_changes_with_any_file(name: str, checkout: Path) -> None:
    before = version(checkout)
    with (checkout / name).open("a") as file:
        file.write("\n# changed\n")
    assert version(checkout) != before


def test_version_changes_with_the_name_of_a_file(checkout: Path) -> None:
    before = version(checkout)
    (checkout / "configs" / "deepspeed" / "zero2.json").rename(checkout / "configs" / "deepspeed" / "zero1.json")
    assert version(checkout) != before


def test_all_is_registered_after_what_it_needs() -> None:
    assets = find_release(ROOT).assets
    names = [asset.name for asset in assets]
    assert names.count("finetune-gpu") == 1
    assert len(set(names)) == len(names) == 4 + len(list((ROOT / "components").glob("*/*.yaml")))
    assert [asset.kind for asset in assets].count("environment") == 4
    done: set[Path] = set()
    for asset in assets:
        assert set(asset.needs.values()) <= done
        done.add(asset.path)


def test_pipelines_in_pipelines_are_followed(checkout: Path) -> None:
    folder = checkout / "components" / "question_answering"
    jobs = "jobs:\n  inner:\n    type: pipeline\n    component: file:./pipeline.yaml\n"
    (folder / "around.yaml").write_text(f"type: pipeline\nname: around\n{jobs}")
    names = [asset.name for asset in find_release(checkout).assets]
    assert names.index("around") > names.index("question_answering_pipeline")


def test_a_folder_without_components_or_a_file(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="is not a checkout of the project"):
        find_release(tmp_path / "nowhere")
    (checkout / "environments" / "gpu" / "environment.yaml").unlink()
    with pytest.raises(ParameterError, match=r"environment\.yaml is missing"):
        find_release(checkout)


@pytest.mark.slow
@pytest.mark.parametrize("registry", ["", "company"])
def test_what_is_sent_names_what_is_registered(registry: str) -> None:
    release = find_release(ROOT)
    entities: dict[str, Any] = {asset.name: _entity(asset, release, registry) for asset in release.assets}
    of = {asset.name: reference(asset, release.version, registry) for asset in release.assets}
    assert {entity.version for entity in entities.values()} == {release.version}
    short = "azureml:" if not registry else ""  # azure-ai-ml takes off the prefix of short names
    assert entities["question_answering_finetune"].environment == of["finetune-gpu"].removeprefix(short)
    for task in ("question_answering", "token_classification"):
        for job, node in entities[f"{task}_pipeline"].jobs.items():
            assert node.component == of[job].removeprefix(short)
