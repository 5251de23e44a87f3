"""What is said of a batch endpoint, and of a deployment that fails."""

from types import SimpleNamespace

import pytest

from finetune.azure.service import batch
from finetune.azure.service.connection import Place
from finetune.azure.service.deployment import Deployment
from finetune.core.errors import StepError

PLANNED = Deployment("folder", "model", "0123456789ab", "files", "cpu-cluster")


def test_how_it_is_used() -> None:
    commands = batch.usage(PLANNED, Place("s", "g", "w"))
    assert [command.split(" --")[0] for command in commands] == [
        "az ml batch-endpoint invoke",
        "az ml job download",
        "az ml batch-endpoint delete",
    ]
    assert all(command.endswith("--subscription s --resource-group g --workspace-name w") for command in commands)


@pytest.mark.slow
def test_a_deployment_that_fails_is_made_again() -> None:
    from azure.core.exceptions import HttpResponseError

    sent = []

    class Poller:
        """Of what fails at once."""

        def done(self) -> bool:
            return True

        def result(self) -> None:
            raise HttpResponseError("no quota")

    def begin(deployment: object) -> Poller:
        sent.append(deployment)
        return Poller()

    failed = SimpleNamespace(provisioning_state="Failed")
    client = SimpleNamespace(
        batch_deployments=SimpleNamespace(get=lambda name, endpoint: failed, begin_create_or_update=begin)
    )
    with pytest.raises(StepError) as caught:
        batch.make_deployment(client, PLANNED, {})
    (fault,) = caught.value.faults
    assert (fault.what, fault.where, fault.why) == (
        "deployment model-0123456789ab failed",
        "batch endpoint files",
        "no quota",
    )
    assert len(sent) == 1
    failed.provisioning_state = "Succeeded"
    assert not batch.make_deployment(client, PLANNED, {}) and len(sent) == 1
