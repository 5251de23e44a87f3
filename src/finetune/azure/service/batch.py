"""A finetuned model as a batch endpoint of Azure ML: jobs that answer each row of the CSV files of a folder."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from finetune.azure.service.connection import Place, explained
from finetune.azure.service.deployment import Deployment, put_endpoint, wait
from finetune.core import timing
from finetune.core.errors import Fault, StepError

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

FILES_AT_A_TIME = 10  # mini_batch_size, as in the public examples
PREDICTIONS = "predictions.csv"


def make_endpoint(client: "MLClient", planned: Deployment) -> bool:
    """Make the endpoint unless it is there; return whether it is new."""
    from azure.ai.ml.entities import BatchEndpoint
    from azure.core.exceptions import ResourceNotFoundError

    with explained(f"batch endpoint {planned.endpoint}"):
        try:
            client.batch_endpoints.get(planned.endpoint)
            return False
        except ResourceNotFoundError:
            put_endpoint(client.batch_endpoints, BatchEndpoint(name=planned.endpoint))
            return True


def make_deployment(client: "MLClient", planned: Deployment, variables: Mapping[str, str]) -> bool:
    """Deploy the model, in an environment with the variables, unless that is done; return whether it is new.

    Raises: StepError if it fails.
    """
    from azure.ai.ml.entities import BatchRetrySettings, ModelBatchDeployment, ModelBatchDeploymentSettings
    from azure.core.exceptions import ResourceNotFoundError

    what = f"deployment {planned.name}"
    with explained(what):
        try:
            there = client.batch_deployments.get(planned.name, planned.endpoint)
        except ResourceNotFoundError:
            there = None
        if there is not None and there.provisioning_state == "Succeeded":
            return False
        settings = ModelBatchDeploymentSettings(
            mini_batch_size=FILES_AT_A_TIME,
            output_action="append_row",
            output_file_name=PREDICTIONS,
            error_threshold=0,  # a file that can't be answered ends the job, and is not left out of the predictions
            max_concurrency_per_instance=1,
            retry_settings=BatchRetrySettings(max_retries=1, timeout=timing.BATCH_OF_FILES),
            logging_level="info",
            environment_variables=dict(variables),
        )
        deployment = ModelBatchDeployment(
            name=planned.name,
            endpoint_name=planned.endpoint,
            model=f"azureml:{planned.model}:{planned.version}",
            compute=planned.machine,
            instance_count=1,
            settings=settings,
        )
        if failed := wait(client.batch_deployments.begin_create_or_update(deployment), what):
            fix = "mend that and deploy again: what is there already stays"
            raise StepError(Fault(f"{what} failed", f"batch endpoint {planned.endpoint}", "\n".join(failed), fix))
    return True


def make_default(client: "MLClient", planned: Deployment) -> None:
    """Let the deployment answer what is sent to the endpoint."""
    with explained(f"batch endpoint {planned.endpoint}"):
        endpoint = client.batch_endpoints.get(planned.endpoint)
        if endpoint.defaults is None or endpoint.defaults.deployment_name != planned.name:
            endpoint.defaults = {"deployment_name": planned.name}
            put_endpoint(client.batch_endpoints, endpoint)


def usage(planned: Deployment, place: Place) -> list[str]:
    """Return the commands that have a folder answered, bring its predictions here, and delete the endpoint."""
    return [
        f"az ml batch-endpoint invoke --name {planned.endpoint} --input FOLDER {place.words}",
        f"az ml job download --name JOB --output-name score {place.words}",
        f"az ml batch-endpoint delete --name {planned.endpoint} {place.words}",
    ]
