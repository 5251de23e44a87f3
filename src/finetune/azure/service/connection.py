"""The way to a workspace or a registry of Azure ML, and what the service says, as errors of ours."""

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING, TypeVar

from finetune.core.errors import Fault, ParameterError, ServiceError, UnsupportedError, first_line
from finetune.params.schema import did_you_mean

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.core.credentials import TokenCredential

# option -> the variable that Azure ML sets on its own machines
WORKSPACE = {
    "--subscription": "AZUREML_ARM_SUBSCRIPTION",
    "--resource-group": "AZUREML_ARM_RESOURCEGROUP",
    "--workspace": "AZUREML_ARM_WORKSPACE_NAME",
}
USAGE = """\
--subscription, --resource-group, --workspace
                 the workspace; left out, AZUREML_ARM_SUBSCRIPTION, AZUREML_ARM_RESOURCEGROUP and
                 AZUREML_ARM_WORKSPACE_NAME, or else config.json of this folder or one above it
"""
FORBIDDEN = 403
LINE_SHOWN = 160
LINES_SHOWN = 8  # of an error of azure-ai-ml, which may go on for pages

Found = TypeVar("Found")


@dataclass(frozen=True)
class Place:
    """A workspace, or a registry; nothing known is the workspace of config.json."""

    subscription: str = ""
    resource_group: str = ""
    workspace: str = ""
    registry: str = ""

    def __str__(self) -> str:
        return f"registry {self.registry}" if self.registry else f"workspace {self.workspace} in {self.resource_group}"

    @property
    def words(self) -> str:
        """The words that name the workspace to the Azure CLI."""
        where = f"--subscription {self.subscription} --resource-group {self.resource_group}"
        return f"{where} --workspace-name {self.workspace}"


def find_place(options: Mapping[str, str]) -> tuple[Place, list[Fault]]:
    """Return the place that the options and the variables name, and the faults of that."""
    if "--registry" in options:
        also = [option for option in WORKSPACE if option in options]
        faults = [Fault(f"--registry and {option} are both given", fix="one of them") for option in also]
        return Place(registry=options["--registry"]), faults
    values = {option: options.get(option) or os.environ.get(name, "") for option, name in WORKSPACE.items()}
    missing = [option for option, value in values.items() if not value]
    if 0 < len(missing) < len(values):
        fixes = {option: f"{option} NAME, or set {WORKSPACE[option]}" for option in missing}
        return Place(), [Fault(f"{option} is missing", fix=fixes[option]) for option in missing]
    return Place(*values.values()), []


def connect(place: Place) -> tuple["MLClient", Place]:
    """Return azure-ai-ml's client of the place, and the place.

    Raises: UnsupportedError without azure-ai-ml, ParameterError without a workspace or registry of that name,
    ServiceError if the service can't be reached or refuses.
    """
    require_azure()
    from azure.ai.ml import MLClient
    from azure.identity import DefaultAzureCredential

    with explained("connecting"):
        credential = DefaultAzureCredential()
        if place.registry:
            found = require(
                "registry", place.registry, lambda: MLClient(credential, registry_name=place.registry), list
            )
            return found, place
        if place.workspace:
            client = MLClient(credential, place.subscription, place.resource_group, place.workspace)
        else:
            client = _client_of_config(credential)
            place = Place(client.subscription_id, client.resource_group_name, client.workspace_name)
        require(
            "workspace",
            place.workspace,
            lambda: client.workspaces.get(place.workspace),
            lambda: [each.name for each in client.workspaces.list()],
        )
    return client, place


def require_azure() -> None:
    """Make azure-ai-ml ready to be imported, without what it says to programmers. Raises: UnsupportedError."""
    try:
        import azure.ai.ml
        import azure.identity  # noqa: F401
    except ImportError as error:
        why = f"{error.name or error} is not installed"
        raise UnsupportedError(Fault("Azure ML can't be asked", why=why, fix='pip install ".[azure]"')) from None
    for name in ("azure", "azure.ai.ml"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"azure\.|marshmallow\.")


def _client_of_config(credential: "TokenCredential") -> "MLClient":
    """Return the client of the workspace in the config.json that azure-ai-ml finds. Raises: ParameterError."""
    from azure.ai.ml import MLClient
    from azure.ai.ml.exceptions import ValidationException

    try:
        return MLClient.from_config(credential)
    except ValidationException as error:
        fix = " ".join(f"{option} NAME" for option in WORKSPACE)
        raise ParameterError(Fault("no workspace is given", why=first_line(error), fix=fix)) from None


def require_compute(client: "MLClient", name: str) -> None:
    """Raise ParameterError if the workspace has no compute of that name."""
    require("compute", name, lambda: client.compute.get(name), lambda: [each.name for each in client.compute.list()])


def require(kind: str, name: str, get: Callable[[], Found], known: Callable[[], list[str]]) -> Found:
    """Return what the service has of that name.

    Raises: ParameterError if that is nothing, with the nearest of the names that are there.
    """
    from azure.core.exceptions import AzureError, ResourceNotFoundError

    try:
        return get()
    except ResourceNotFoundError as error:
        try:
            names = known()
        except AzureError:  # who may look at one workspace need not be allowed to list them
            names = []
        there = f"there are: {', '.join(names)}" if names else first_line(error)
        raise ParameterError(Fault(f"there is no {kind} {name!r}{did_you_mean(name, names)}", why=there)) from None


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn what azure-ai-ml raises into a ServiceError, which says what was being done."""
    from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError, ServiceRequestError

    try:
        yield
    except ClientAuthenticationError as error:
        fault = Fault(f"{doing}: no credential is accepted", why=attempts(error), fix="az login")
        raise ServiceError(fault) from None
    except ServiceRequestError as error:
        fault = Fault(f"{doing}: Azure ML can't be reached", why=reason(error), fix="check the network and the names")
        raise ServiceError(fault) from None
    except HttpResponseError as error:
        fix = "ask for the role AzureML Data Scientist there" if error.status_code == FORBIDDEN else ""
        raise ServiceError(Fault(f"{doing}: Azure ML refuses", why=reason(error), fix=fix)) from None
    except AzureError as error:
        raise ServiceError(Fault(f"{doing}: it failed", why=reason(error))) from None


def attempts(error: BaseException) -> str:
    """Return what each credential that was tried says, in a line: the one that should have worked may be the last."""
    lines = [line.strip() for line in str(error).splitlines() if re.match(r"\s*\w+Credential: ", line)]
    return "\n    ".join(shorten(line, LINE_SHOWN, placeholder=" …") for line in lines) or reason(error)


def reason(error: BaseException) -> str:
    """Return the first lines of an error of azure-ai-ml that say something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "\n    ".join(lines[:LINES_SHOWN])
