"""Submit the question answering pipeline with the azure-ai-ml SDK.

pip install ".[azure]"
python examples/submit.py SUBSCRIPTION RESOURCE_GROUP WORKSPACE
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from azure.ai.ml import Input, MLClient, dsl, load_component
from azure.ai.ml.entities import PipelineJob

from finetune.azure.pipeline_yaml import load_pipeline, unfit_for_azure
from finetune.core.errors import ParameterError
from finetune.core.process import run_main
from finetune.params.schema import to_text

ROOT = Path(__file__).resolve().parents[1]
PIPELINE = ROOT / "components" / "question_answering" / "pipeline.yaml"
SAMPLE = ROOT / "examples" / "question_answering"
INPUTS = {
    "huggingface_id": "bert-base-uncased",
    "train_file_path": Input(type="uri_file", path=str(SAMPLE / "train.jsonl")),
    "validation_file_path": Input(type="uri_file", path=str(SAMPLE / "validation.jsonl")),
    "test_file_path": Input(type="uri_file", path=str(SAMPLE / "test.jsonl")),
    "max_seq_length": 384,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "learning_rate": 3e-5,
    "precision": "bf16",
    "metric_for_best_model": "f1",
}


def build(inputs: Mapping[str, object] = INPUTS) -> PipelineJob:
    """The job, on the bundled sample; nothing is sent yet. Raises: ParameterError if Azure ML can't carry a value."""
    texts = {name: value.path if isinstance(value, Input) else to_text(value) for name, value in inputs.items()}
    if faults := unfit_for_azure(load_pipeline(PIPELINE), texts):
        raise ParameterError(*faults)
    pipeline = load_component(PIPELINE)

    @dsl.pipeline(display_name="Question answering on the bundled sample", default_compute="serverless")
    def question_answering() -> dict[str, object]:
        step = pipeline(**inputs)
        return {"model": step.outputs.mlflow_model_folder, "scores": step.outputs.evaluation_result}

    return question_answering()


def main(argv: list[str]) -> None:
    if len(argv) != 3:
        sys.exit(__doc__)
    job = build()
    from azure.identity import DefaultAzureCredential

    client = MLClient(DefaultAzureCredential(), *argv)
    sent = client.jobs.create_or_update(job, experiment_name="question-answering")
    print(sent.studio_url)


if __name__ == "__main__":
    run_main(main)
