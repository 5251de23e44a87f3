"""The parameters of model import."""

from dataclasses import dataclass
from pathlib import Path

from finetune.params.schema import param, port

SELECTED = ("model_selector_args.json", "model_selector_args.part", "model/")


@dataclass(frozen=True, kw_only=True)
class ModelImportParams:
    """Model import."""

    huggingface_id: str | None = param(
        None,
        "Hugging Face model id, such as bert-base-uncased. Used if no path is given; a local folder is read without the network.",
    )
    huggingface_revision: str | None = param(
        None,
        "Branch, tag or commit of huggingface_id; left out, its main branch.",
    )
    huggingface_token_secret: str | None = param(
        None,
        "Address of a secret in an Azure key vault, https://VAULT.vault.azure.net/secrets/NAME, that holds the hub's token for a gated model; never the token itself. The step reads it as its managed identity. Left out, the token is that of the environment variable HF_TOKEN.",
    )
    pytorch_model_path: Path | None = port(
        "custom_model",
        "A Hugging Face model folder, or pytorch_model_folder of an earlier run. Wins over the others.",
        optional=True,
    )
    mlflow_model_path: Path | None = port(
        "mlflow_model",
        "An MLflow model folder: its weights, config and tokenizer are copied, none of its code is run. Wins over huggingface_id.",
        optional=True,
    )
    validation_output: Path | None = port(
        "uri_folder",
        "Output of Azure's validation component, which the published model import waits for. Not read: finetune check and each component look for themselves.",
        optional=True,
    )
    output_dir: Path = port(
        "uri_folder",
        "The model folder and model_selector_args.json.",
        output=True,
        writes=SELECTED,
    )
