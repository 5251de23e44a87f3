"""Submit the question answering pipeline with the azure-ai-ml SDK.

pip install ".[azure]"
python examples/submit.py SUBSCRIPTION RESOURCE_GROUP WORKSPACE
"""

import sys
from pathlib import Path

from azure.ai.ml import Input, MLClient, dsl, load_component
from azure.ai.ml.entities import PipelineJob

ROOT = Path(__file__).resolve().parents[1]


def build() -> PipelineJob:
    """The job, on the bundled sample; nothing is sent yet."""
    pipeline = load_component(ROOT / "components" / "question_answering" / "pipeline.yaml")
    sample = ROOT / "examples" / "question_answering"

    @dsl.pipeline(display_name="Question answering on the bundled sample", default_compute="serverless")
    def question_answering() -> dict[str, object]:
        step = pipeline(
            huggingface_id="bert-base-uncased",
            train_file_path=Input(type="uri_file", path=str(sample / "train.jsonl")),
            validation_file_path=Input(type="uri_file", path=str(sample / "validation.jsonl")),
            test_file_path=Input(type="uri_file", path=str(sample / "test.jsonl")),
            max_seq_length=384,
            num_train_epochs=3,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=32,
            learning_rate=3e-5,
            precision="bf16",
            metric_for_best_model="f1",
        )
        return {"model": step.outputs.mlflow_model_folder, "scores": step.outputs.evaluation_result}

    return question_answering()


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    from azure.identity import DefaultAzureCredential

    client = MLClient(DefaultAzureCredential(), *sys.argv[1:])
    job = client.jobs.create_or_update(build(), experiment_name="question-answering")
    print(job.studio_url)


if __name__ == "__main__":
    main()
