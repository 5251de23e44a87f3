"""The steps of Azure's public finetuning notebooks with our components in, as they would be typed there.

Written anew after foundation-models/system/finetune/{question-answering,token-classification,translation} of
Azure/azureml-examples: data, compute, pipeline by keyword, metrics, model, deployment, request.
"""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pandas as pd
import pytest
import transformers

from tests.azure_service.service import Service
from tests.conftest import ROOT, sample_rows, write_jsonl
from tests.writers import build_writer

pytestmark = [pytest.mark.azure, pytest.mark.slow, pytest.mark.thorough]
COUNTS = {"train": 16, "validation": 6, "test": 6}


class Notebook(NamedTuple):
    """What differs between the notebooks."""

    keys: dict[str, str]
    metric_for_best_model: str
    config: dict[str, Any]  # of the evaluation
    logged: str  # the metric by which a notebook knows the run of the evaluation
    columns: list[str]  # of a request
    answered: str  # the first column of an answer


NOTEBOOKS = {
    "question_answering": Notebook(
        keys={
            "question_key": "question",
            "context_key": "context",
            "answers_key": "answers",
            "answer_start_key": "answer_start",
            "answer_text_key": "text",
        },
        metric_for_best_model="exact",
        config={"metrics": ["exact_match", "f1_score"], "ignore_case": True, "ignore_punctuation": True},
        logged="exact_match",
        columns=["question", "context"],
        answered="answer",
    ),
    "token_classification": Notebook(
        keys={"token_key": "tokens", "tag_key": "ner_tags_str"},
        metric_for_best_model="f1",
        config={"metrics": ["accuracy", "f1_score_macro"]},
        logged="accuracy",
        columns=["tokens"],
        answered="tags",
    ),
    "translation": Notebook(
        keys={"source_lang": "en", "target_lang": "ro"},
        metric_for_best_model="bleu",
        config={"metrics": ["bleu_1", "bleu_2", "bleu_3", "bleu_4"]},
        logged="bleu_1",
        columns=["en"],
        answered="translation",
    ),
}


class Finished(NamedTuple):
    """A job that has run to its end, of a task."""

    task: str
    notebook: Notebook
    job: Any
    built: dict[str, Any]  # before it was submitted
    folder: Path


def published_rows(task: str, split: str) -> list[dict[str, Any]]:
    """Rows of the sample with all the columns that the set of the notebook has."""
    rows = sample_rows(split, task)[: COUNTS[split]]
    if task == "question_answering":
        return rows
    if task == "translation":  # what stands for Romanian here is the sample's own language
        return [{"en": row["en"], "ro": row["tav"]} for row in rows]
    kinds = {tag: number for number, tag in enumerate(sorted({tag for row in rows for tag in row["ner_tags"]}))}
    return [
        {
            "id": row["id"],
            "tokens": row["tokens"],
            "pos_tags": [0] * len(row["tokens"]),
            "chunk_tags": [0] * len(row["tokens"]),
            "ner_tags": [kinds[tag] for tag in row["ner_tags"]],
            "text": " ".join(row["tokens"]),
            "ner_tags_str": str(row["ner_tags"]),
        }
        for row in rows
    ]


def published_model(tiny: Path, folder: Path) -> Path:
    """An MLflow model that holds a transformers model, as one that a registry has, but for its code."""
    kind = json.loads((tiny / "config.json").read_text())["architectures"][0]
    getattr(transformers, kind).from_pretrained(tiny).save_pretrained(folder / "data" / "model")
    tokenizer, config = folder / "data" / "tokenizer", folder / "data" / "config"
    tokenizer.mkdir()
    config.mkdir()
    (config / "config.json").write_bytes((folder / "data" / "model" / "config.json").read_bytes())  # there twice
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tokenizer / name).write_bytes((tiny / name).read_bytes())
    (folder / "MLmodel").write_text(
        f"flavors:\n  hftransformersv2:\n    hf_pretrained_class: {kind}\n    model_data: data\n"
    )
    return folder


@pytest.fixture(scope="module", params=NOTEBOOKS)
def finished(
    request: pytest.FixtureRequest, client: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """Sections 1 to 5 of a notebook."""
    from azure.ai.ml import Input, load_component
    from azure.ai.ml.constants import AssetTypes
    from azure.ai.ml.dsl import pipeline
    from azure.ai.ml.entities import AmlCompute, Model

    task, notebook = request.param, NOTEBOOKS[request.param]
    folder = tmp_path_factory.mktemp(task)
    cluster = AmlCompute(name="gpu-cluster-big", size="STANDARD_NC4AS_T4_V3", max_instances=2)
    client.compute.begin_create_or_update(cluster).wait()
    size = client.compute.get("gpu-cluster-big").size
    [gpus_per_node] = [sku.gpus for sku in client.compute.list_sizes() if sku.name.lower() == size.lower()]
    is_writing = task == "translation"
    tiny = build_writer("t5", folder / "tiny", n_positions=64) if is_writing else tiny_model
    published = published_model(tiny, folder / "published")
    foundation_model = client.models.create_or_update(
        Model(name=f"tiny-{task.replace('_', '-')}", path=published, type=AssetTypes.MLFLOW_MODEL, version="1")
    )
    files = {split: write_jsonl(folder / f"{split}.jsonl", published_rows(task, split)) for split in COUNTS}
    config = folder / "config.json"
    config.write_text(json.dumps(notebook.config))
    client.components.create_or_update(load_component(ROOT / "components" / task / "pipeline.yaml"))
    pipeline_component_func = client.components.get(name=f"{task}_pipeline", label="latest")
    optimization_parameters = {
        "apply_lora": "true",
        "apply_deepspeed": "true" if find_spec("deepspeed") else "false",
        "apply_ort": "true",
    }

    @pipeline()
    def create_pipeline() -> dict[str, Any]:
        step = pipeline_component_func(
            mlflow_model_path=foundation_model.id,
            compute_model_import="gpu-cluster-big",
            compute_preprocess="gpu-cluster-big",
            compute_finetune="gpu-cluster-big",
            compute_model_evaluation="gpu-cluster-big",
            train_file_path=Input(type="uri_file", path=str(files["train"])),
            validation_file_path=Input(type="uri_file", path=str(files["validation"])),
            test_file_path=Input(type="uri_file", path=str(files["test"])),
            evaluation_config=Input(type="uri_file", path=str(config)),
            number_of_gpu_to_use_finetuning=gpus_per_node,
            num_train_epochs=3,
            per_device_train_batch_size=1,
            per_device_eval_batch_size=1,
            learning_rate=2e-5,
            metric_for_best_model=notebook.metric_for_best_model,
            **notebook.keys,
            **optimization_parameters,
        )
        return {"trained_model": step.outputs.mlflow_model_folder}

    pipeline_object = create_pipeline()
    pipeline_object.settings.force_rerun = True
    pipeline_object.settings.continue_on_step_failure = False
    built = pipeline_object._to_dict()
    job = client.jobs.create_or_update(pipeline_object, experiment_name=f"{task}-tiny")
    client.jobs.stream(job.name)
    return Finished(task, notebook, client.jobs.get(job.name), built, folder)


def test_the_pipeline_runs_to_its_end(finished: Finished, client: Any) -> None:
    assert finished.job.status == "Completed"
    children = [child.display_name for child in client.jobs.list(parent_job_name=finished.job.name)]
    names = ("model_import", "datapreprocess", "finetune", "evaluation")
    assert children == [f"{finished.task}_{name}" for name in names]


def test_what_the_validation_notebook_reads_of_the_job(finished: Finished) -> None:
    node = next(iter(finished.built["jobs"].values()))
    assert node["inputs"]["compute_finetune"] == "gpu-cluster-big"
    for split in COUNTS:
        assert "path" in node["inputs"][f"{split}_file_path"]
    assert int(node["component"]["inputs"]["num_nodes_finetune"]["default"]) == 1


def test_the_metrics_are_found(finished: Finished, client: Any) -> None:
    mlflow.set_tracking_uri(client.workspaces.get(client.workspace_name).mlflow_tracking_uri)
    runs = mlflow.search_runs(
        experiment_names=[f"{finished.task}-tiny"],
        filter_string=f"tags.mlflow.rootRunId='{finished.job.name}'",
        output_format="list",
    )
    training = [run for run in runs if "epoch" in run.data.metrics]
    evaluation = [run for run in runs if finished.notebook.logged in run.data.metrics]
    assert len(training) == len(evaluation) == 1
    assert training[0].data.metrics["epoch"] == 3
    assert 0 <= evaluation[0].data.metrics[finished.notebook.logged] <= 1


@pytest.fixture(scope="module")
def answer(finished: Finished, client: Any) -> Iterator[pd.DataFrame]:
    """Sections 6 to 8 of a notebook: model, endpoint, deployment, request, and the end of the endpoint."""
    from azure.ai.ml.constants import AssetTypes
    from azure.ai.ml.entities import ManagedOnlineDeployment, ManagedOnlineEndpoint, Model, ProbeSettings

    name = f"{finished.task.replace('_', '-')}-tiny"
    registered_model = client.models.create_or_update(
        Model(
            path=f"azureml://jobs/{finished.job.name}/outputs/trained_model",
            type=AssetTypes.MLFLOW_MODEL,
            name=name,
            version="2",
            description="tiny model finetuned",
        )
    )
    endpoint = ManagedOnlineEndpoint(name=name, description="Online endpoint", auth_mode="key")
    client.begin_create_or_update(endpoint).wait()
    deployment = ManagedOnlineDeployment(
        name="demo",
        endpoint_name=name,
        model=registered_model.id,
        instance_type="Standard_DS3_v2",
        instance_count=1,
        liveness_probe=ProbeSettings(initial_delay=600),
    )
    client.online_deployments.begin_create_or_update(deployment).wait()
    assert client.online_deployments.get("demo", name).provisioning_state == "Succeeded"
    endpoint.traffic = {"demo": 100}
    client.begin_create_or_update(endpoint).result()
    test_df = pd.read_json(finished.folder / "test.jsonl", lines=True)[finished.notebook.columns].head(2)
    request = finished.folder / "sample_score.json"
    request.write_text(json.dumps({"input_data": test_df.to_dict("split")}))
    response = client.online_endpoints.invoke(endpoint_name=name, deployment_name="demo", request_file=str(request))
    yield pd.read_json(StringIO(response))
    client.online_endpoints.begin_delete(name=name).wait()


def test_the_deployment_answers_the_request(finished: Finished, answer: pd.DataFrame) -> None:
    assert len(answer) == 2
    assert answer.columns[0] == finished.notebook.answered
    if finished.task == "token_classification":
        rows = published_rows(finished.task, "test")[:2]
        assert [len(tags) for tags in answer["tags"]] == [len(row["tokens"]) for row in rows]


def test_the_service_knew_every_request(answer: pd.DataFrame, azure: Service) -> None:
    """But for blobs and assets that are looked for before they are made."""
    assert len(answer)
    looked_for = ("HEAD ", "GET ")
    assert [line for line in azure.unknown if not line.startswith(looked_for)] == []
