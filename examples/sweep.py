"""The sweep of sweep.yaml, built in Python: several learning rates and batch sizes, and the best model kept.

pip install ".[azure]"
python examples/sweep.py SUBSCRIPTION RESOURCE_GROUP WORKSPACE
"""

import sys
from pathlib import Path

from azure.ai.ml import Input, MLClient, dsl, load_component
from azure.ai.ml.sweep import BanditPolicy, Choice, LogUniform

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "examples" / "question_answering"
SPLITS = ("train", "validation", "test")
IMPORT, PREPROCESS, FINETUNE = (
    load_component(ROOT / "components" / "question_answering" / f"{name}.yaml")
    for name in ("model_import", "datapreprocess", "finetune")
)


@dsl.pipeline(
    display_name="Question answering, a sweep on the bundled sample",
    experiment_name="question-answering",
    default_compute="serverless",
)
def make_sweep() -> dict[str, object]:
    """Finetune with several learning rates and batch sizes, and keep the best model."""
    sample = {f"{split}_file_path": Input(type="uri_file", path=str(SAMPLE / f"{split}.jsonl")) for split in SPLITS}
    model_import = IMPORT(huggingface_id="bert-base-uncased")  # the steps are called as these variables are
    datapreprocess = PREPROCESS(**sample, max_seq_length=384, model_selector_output=model_import.outputs.output_dir)
    trial = FINETUNE(
        learning_rate=LogUniform(min_value=-11.5, max_value=-9.2),  # 1e-5 to 1e-4, as powers of e
        per_device_train_batch_size=Choice([8, 16, 32]),
        num_train_epochs=3,
        metric_for_best_model="f1",
        preprocess_output=datapreprocess.outputs.output_dir,
        model_selector_output=model_import.outputs.output_dir,
    )
    finetune = trial.sweep(sampling_algorithm="random", goal="maximize", primary_metric="eval_f1")
    finetune.early_termination = BanditPolicy(slack_factor=0.2, evaluation_interval=1, delay_evaluation=1)
    finetune.set_limits(max_total_trials=8, max_concurrent_trials=4, timeout=14400)
    finetune.set_resources(instance_type="Standard_NC24ads_A100_v4", shm_size="5g")
    return {"model": finetune.outputs.mlflow_model_folder}


def main(argv: list[str]) -> None:
    if len(argv) != 3:
        sys.exit(__doc__)
    from azure.identity import DefaultAzureCredential

    client = MLClient(DefaultAzureCredential(), *argv)
    print(client.jobs.create_or_update(make_sweep()).studio_url)


if __name__ == "__main__":
    main(sys.argv[1:])
