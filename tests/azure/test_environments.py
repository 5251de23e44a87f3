"""The environments: their images and pins, and what pip makes of them in a fresh environment."""

import logging
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml

from finetune import run
from finetune.results.saving import SERVED_IN_OPENVINO, SERVED_IN_PYTORCH
from tests.azure.test_scoring import QUESTIONS
from tests.conftest import ROOT, finetune_words, sample_rows, write_jsonl
from tests.servers import ask, free_port, install, listening

NAMES = ("cpu", "gpu", "ort", "serving")
# README.md of Azure/AzureML-Containers; of Azure/azureml-assets, assets/inference/environments.
SUPPORTED = {"openmpi5.0-ubuntu24.04", "openmpi5.0-cuda13.1-ubuntu24.04", "minimal-py311-inference"}


def folder(name: str) -> Path:
    return ROOT / "environments" / name


def pins(file: Path) -> dict[str, str]:
    """Name and version of each package of a requirements or constraints file."""
    return dict(line.split("==") for line in file.read_text().splitlines() if "==" in line)


def image(name: str) -> str:
    found = re.findall(
        r"^FROM mcr\.microsoft\.com/azureml/(.+):latest$", (folder(name) / "Dockerfile").read_text(), re.M
    )
    assert len(found) == 1
    return str(found[0])


def test_images_are_those_that_azure_ml_supports() -> None:
    assert {path.name for path in (ROOT / "environments").iterdir()} == set(NAMES)
    assert {image(name) for name in NAMES} == SUPPORTED


def test_the_gpu_image_has_the_cuda_of_torch() -> None:
    """PyPI's torch is built for CUDA 12 up to 2.10, for 13 from 2.11 on."""
    newer = tuple(int(part) for part in pins(ROOT / "constraints.txt")["torch"].split(".")[:2]) >= (2, 11)
    assert re.findall(r"-cuda(\d+)\.", image("gpu")) == ["13" if newer else "12"]


@pytest.mark.parametrize("name", NAMES)
def test_azure_takes_it_inline_and_by_a_name_that_is_given(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Azure ML drops the name of an inline environment, with a warning."""
    from azure.ai.ml import load_component, load_environment

    spec = yaml.safe_load((folder(name) / "environment.yaml").read_text())
    assert not {"name", "version"} & spec.keys()
    made = load_environment(folder(name) / "environment.yaml", params_override=[{"name": "n"}, {"version": "1"}])
    assert made.path == folder(name)
    if name in ("cpu", "gpu"):
        with caplog.at_level(logging.WARNING):
            component = {"cpu": "datapreprocess", "gpu": "finetune"}[name]
            loaded = load_component(ROOT / f"components/question_answering/{component}.yaml")
        assert loaded.environment.path == folder(name)
        assert "will not be used for anonymous registration" not in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_versions_are_those_that_are_tested(name: str) -> None:
    """But for those of Azure ML's inference server, which trains nothing."""
    asked, given = pins(folder(name) / "requirements.txt"), pins(folder(name) / "constraints.txt")
    builds = {"torch": given["torch"] + ("" if name == "gpu" else "+cpu")}
    assert asked == {package: {**given, **builds}[package] for package in asked}
    tested, served = pins(ROOT / "constraints.txt"), {*SERVED_IN_PYTORCH, *SERVED_IN_OPENVINO}
    differ = {package for package in given if given[package] != tested.get(package)}
    if name == "serving":
        assert set(asked) - differ == {*served, "mlflow-skinny"} - {"mlflow"}
        assert not differ & {"accelerate", "mlflow", *served} and "azureml-inference-server-http" in differ
    else:
        assert not differ


def test_this_environment_has_these_versions_and_is_consistent() -> None:
    found = 0
    for package, wanted in {**pins(folder("cpu") / "constraints.txt")}.items():
        try:
            assert version(package).partition("+")[0] == wanted, package
            found += 1
        except PackageNotFoundError:
            continue
    assert found > 50
    assert_consistent(Path(sys.executable))


def assert_consistent(python: Path) -> None:
    checked = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


# --- installed by pip, in a fresh environment ---


def fresh(where: Path, name: str) -> Path:
    """The bin folder of a new environment with what requirements.txt asks for."""
    torch = f"torch=={pins(ROOT / 'constraints.txt')['torch']}+cpu"
    asked = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(where / "torch"), torch]
    if subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip(f"{torch} can't be had; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu has it")
    venv.create(where / name, with_pip=True, symlinks=True)
    install(where / name / "bin", folder(name) / "requirements.txt")
    return where / name / "bin"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)  # gigabytes


def lines_of(words: list[str], folder: Path) -> str:
    """What a command prints, run on the code of this checkout."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    ran = subprocess.run(words, env=env, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.environments
@pytest.mark.slow
@pytest.mark.thorough
def test_all_steps_run_in_the_cpu_environment_to_which_that_for_gpus_adds(tiny_model: Path, place: Path) -> None:
    binaries = fresh(place, "cpu")
    assert_consistent(binaries / "python")
    rows = write_jsonl(place / "rows.jsonl", sample_rows("train")[:24])
    words = [
        str(binaries / "python"),
        "-m",
        "finetune",
        "pipeline",
        str(ROOT / "components/question_answering/pipeline.yaml"),
    ]
    words += ["--output", "out", "--set", f"pytorch_model_path={tiny_model}", "max_steps=1", "max_seq_length=128"]
    words += [f"{split}_file_path={rows}" for split in ("train", "validation", "test")]
    assert "evaluation_result" in lines_of(words, place)
    # All else in the GPU environment is the same, but for the build of torch; DeepSpeed's kernels need CUDA's compiler.
    install(binaries, folder("gpu") / "requirements.txt", "--no-build-isolation")
    assert_consistent(binaries / "python")
    imported = lines_of(
        [str(binaries / "python"), "-c", "import bitsandbytes, deepspeed; print(deepspeed.__version__)"], place
    )
    assert imported.split()[-1] == pins(ROOT / "constraints.txt")["deepspeed"]


@pytest.mark.environments
@pytest.mark.compression
@pytest.mark.slow
@pytest.mark.thorough
def test_a_model_in_openvino_is_served_by_its_own_requirements(prepared: Path, place: Path) -> None:
    """With the packages that its MLflow folder asks for and nothing else: torch is none of them."""
    for name in ("openvino", "nncf"):
        pytest.importorskip(name, reason='pip install ".[compression]"')
    run.main(
        finetune_words(
            prepared, place / "models", max_steps=1, quantization="ptq", openvino_model_folder=place / "openvino"
        )
    )
    model = place / "openvino" / "mlflow_model"
    venv.create(place / "own", with_pip=True, symlinks=True)
    install(place / "own" / "bin", model / "requirements.txt")
    code = (
        "import importlib.util, mlflow.pyfunc\n"
        f"model = mlflow.pyfunc.load_model({str(model)!r})\n"
        "print(len(model.predict(model.input_example)), importlib.util.find_spec('torch'))"
    )
    done = subprocess.run(
        [place / "own" / "bin" / "python", "-c", code], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.stdout.split()[-2:] == ["1", "None"], done.stdout + done.stderr


@pytest.mark.environments
@pytest.mark.slow
@pytest.mark.thorough
def test_azures_server_serves_a_model_in_the_serving_environment(prepared: Path, place: Path) -> None:
    run.main(finetune_words(prepared, place / "models" / "1", max_steps=1, per_device_train_batch_size=8))
    binaries = fresh(place, "serving")
    assert_consistent(binaries / "python")
    env = {
        "AML_APP_ROOT": str(ROOT / "src/finetune/azure/scoring"),
        "AZUREML_ENTRY_SCRIPT": "score.py",
        "AZUREML_MODEL_DIR": str(place / "models" / "1"),
    }
    here = f"127.0.0.1:{free_port()}"  # `azmlinfsrv` itself would listen to the world
    words = [str(binaries / "gunicorn"), "--bind", here, "azureml_inference_server_http.server.entry:app"]
    example = {key: value for key, value in QUESTIONS.items() if key != "index"}
    with listening(words, env, f"http://{here}/swagger.json", place / "server.log"):
        address = f"http://{here}/score"
        status, answers = ask(address, {"input_data": QUESTIONS})
        assert status == 200 and [set(answer) for answer in answers] == [{"answer", "score", "start", "end"}] * 2
        for body in (
            {"dataframe_split": example},
            {"dataframe_records": [dict(zip(example["columns"], row, strict=True)) for row in example["data"]]},
        ):
            assert ask(address, body) == (200, {"predictions": answers})
        assert ask(address, {"input_data": QUESTIONS, "params": {"null_threshold": "high"}})[0] == 400
        assert ask(address, {"input_data": {"columns": ["question"], "data": [["Who?"]]}})[0] == 400
        status, refused = ask(address, {"input_data": {**example, "data": [["Who?", "a" * 3_000_000]]}})
        assert status == 413 and "max_request_characters is 1,000,000" in refused["message"]
