"""Submit the pipeline of a task, on its bundled sample, from Python: what `finetune submit` does, in three calls.

pip install ".[azure]"
python examples/submit.py SUBSCRIPTION RESOURCE_GROUP WORKSPACE [TASK]

TASK is question_answering, generative_question_answering, token_classification or translation.
"""

import sys
from pathlib import Path

from azure.ai.ml import MLClient
from azure.ai.ml.entities import PipelineJob

from finetune.azure.pipeline_yaml import load_pipeline
from finetune.azure.service.submission import build, settle_inputs
from finetune.core.process import run_main

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "validation", "test")
INPUTS = {
    "huggingface_id": "bert-base-uncased",
    "num_train_epochs": "3",
    "per_device_train_batch_size": "16",
    "per_device_eval_batch_size": "32",
    "learning_rate": "3e-5",
    "precision": "bf16",
    "metric_for_best_model": "f1",
}
OF_TASK = {
    "question_answering": {"max_seq_length": "384"},
    "generative_question_answering": {"huggingface_id": "t5-small", "max_seq_length": "384"},
    "token_classification": {"max_seq_length": "256"},
    "translation": {
        "huggingface_id": "t5-small",
        "source_lang": "en",
        "target_lang": "tav",
        "max_seq_length": "128",
        "max_target_length": "128",
        "metric_for_best_model": "bleu",
    },
}


def make_job(task: str, **changes: str) -> PipelineJob:
    """The job; nothing is sent yet. Raises: ParameterError for what is unknown, wrong or not carried by Azure ML."""
    sample = {f"{split}_file_path": str(ROOT / "examples" / task / f"{split}.jsonl") for split in SPLITS}
    pipeline = load_pipeline(ROOT / "components" / task / "pipeline.yaml")
    inputs = settle_inputs(pipeline, {**INPUTS, **sample, **OF_TASK[task], **changes})
    return build(pipeline, inputs, experiment=task.replace("_", "-"))


def main(argv: list[str]) -> None:
    if len(argv) not in (3, 4) or (len(argv) == 4 and argv[3] not in OF_TASK):
        sys.exit(__doc__)
    job = make_job(argv[3] if len(argv) == 4 else "question_answering")
    from azure.identity import DefaultAzureCredential

    client = MLClient(DefaultAzureCredential(), *argv[:3])
    print(client.jobs.create_or_update(job).studio_url)


if __name__ == "__main__":
    run_main(main)
