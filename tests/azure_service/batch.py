"""The jobs of batch endpoints: the service submits a pipeline of its own, with one step that answers CSV files.

What Azure ML's step does is in no public repository. csv_driver.py follows its documentation ("Deploy MLflow models in
batch deployments") and the public notebooks, which read the predictions without a header: row, prediction, file.
"""

import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from tests.azure_service.names import Answer, Json, Request, resource

if TYPE_CHECKING:
    from tests.azure_service.service import Service

DRIVER = Path(__file__).with_name("csv_driver.py")
PLACE = "components/batch_scoring/versions/1"
COMPONENT: Json = {
    "type": "command",
    "inputs": {"model": {"type": "mlflow_model"}, "data": {"type": "uri_folder"}, "size": {"type": "integer"}},
    "outputs": {"score": {"type": "uri_folder"}},
    "code": "azureml:/codes/batch_scoring/versions/1",
    "command": f"python {DRIVER.name} '${{{{inputs.model}}}}' '${{{{inputs.data}}}}' ${{{{inputs.size}}}} "
    "'${{outputs.score}}'",
}


def invoke(service: "Service", request: Request) -> Answer:
    """Start a job of the deployment that is named, or of the endpoint's default."""
    path = f"batchEndpoints/{request.parts[2]}"
    default = (service.resources[path]["properties"].get("defaults") or {}).get("deploymentName")
    name = request.headers.get("azureml-model-deployment") or default
    deployment = service.resources[f"{path}/deployments/{name}"]["properties"]
    [data] = request.body["properties"]["inputData"].values()
    keep_component(service, deployment)
    inputs = {
        "model": {"jobInputType": "mlflow_model", "uri": deployment["model"]["assetId"]},
        "data": {"jobInputType": "uri_folder", "uri": data["uri"]},
        "size": {"jobInputType": "literal", "value": str(deployment["miniBatchSize"])},
    }
    node = {
        "type": "command",
        "componentId": f"/{PLACE}",
        "inputs": {key: {"job_input_type": "literal", "value": f"${{{{parent.inputs.{key}}}}}"} for key in inputs},
        "outputs": {"score": {"type": "literal", "value": "${{parent.outputs.score}}"}},
    }
    job = f"batchjob-{uuid.uuid4()}"
    outputs = {"score": {"jobOutputType": "uri_folder"}}
    properties = {"jobType": "Pipeline", "inputs": inputs, "outputs": outputs, "jobs": {"batchscoring": node}}
    known = service.resources[f"jobs/{job}"] = resource(f"jobs/{job}", {"properties": properties})
    service.start_job(job, known)
    return Answer(201, known)


def keep_component(service: "Service", deployment: Json) -> None:
    """Make the step of a deployment known, with its code."""
    folder = service.folder / "blob" / "batch"
    folder.mkdir(exist_ok=True)
    shutil.copy(DRIVER, folder)
    code = {"properties": {"codeUri": f"{service.url}/acct.blob.local/batch", "properties": {"hash_sha256": ""}}}
    service.resources["codes/batch_scoring/versions/1"] = resource("codes/batch_scoring/versions/1", code)
    variables = " ".join(f"{name}='{value}'" for name, value in deployment["environmentVariables"].items())
    spec = {**COMPONENT, "command": f"{variables} {COMPONENT['command']}/{deployment['outputFileName']}"}
    service.resources[PLACE] = resource(PLACE, {"properties": {"componentSpec": spec}})
