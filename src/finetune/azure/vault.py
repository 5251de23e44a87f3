"""Read a secret of an Azure key vault, as the identity that the process runs as."""

import logging
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from finetune.azure.service.connection import attempts
from finetune.core import timing
from finetune.core.errors import Fault, ServiceError, UnsupportedError, first_line
from finetune.core.types import Json

if TYPE_CHECKING:
    from azure.core.rest import HttpResponse

API_VERSION = "7.4"
RETRIES = 3  # where nothing answers, or an error of the vault's own: some seconds in all
# The identity of a cluster of Azure ML that has several, and the one that azure-identity looks for.
CLIENT_IDS = ("DEFAULT_IDENTITY_CLIENT_ID", "AZURE_CLIENT_ID")
OTHER_MACHINE = (
    "on Azure ML, a cluster with a managed identity, --set compute_model_import=CLUSTER; elsewhere, az login"
)
SET = "az keyvault secret set --vault-name VAULT --name NAME --file TOKEN_FILE"
SHOW = "az keyvault secret show --vault-name VAULT --name NAME --query id, which shows no value, says more"
# What a vault says it refuses for -> how that is mended, with VAULT for the vault.
REFUSALS = {
    "ForbiddenByPolicy": "az keyvault set-policy --name VAULT --secret-permissions get --object-id IDENTITY",
    "ForbiddenByFirewall": "let the cluster's network through the firewall of VAULT",
    "SecretDisabled": "az keyvault secret set-attributes --vault-name VAULT --name NAME --enabled true",
}
NOT_ALLOWED = (
    'az role assignment create --role "Key Vault Secrets User" --assignee IDENTITY '
    "--scope $(az keyvault show --name VAULT --query id --output tsv), of the cluster's managed identity"
)


def read_secret(address: str) -> str:
    """Return the value of a secret by its address, https://VAULT.vault.azure.net/secrets/NAME[/VERSION].

    The value is in no log, no error and no variable. Raises: UnsupportedError without azure-identity, ServiceError if
    the vault can't be reached, has no such secret, doesn't give it to this identity, or gives what is no token.
    """
    try:
        import azure.identity  # noqa: F401
        from azure.core.exceptions import AzureError, ClientAuthenticationError
    except ImportError as error:
        why = f"{error.name} is not installed"
        raise UnsupportedError(Fault(f"{address} can't be read", why=why, fix='pip install ".[azure]"')) from None
    try:
        response = _ask(address)
    except ClientAuthenticationError as error:
        what = f"{address} can't be read: there is no identity to read it as"
        raise ServiceError(Fault(what, why=attempts(error), fix=OTHER_MACHINE)) from None
    except AzureError as error:
        what = f"the key vault of {address} can't be reached"
        raise ServiceError(
            Fault(what, why=first_line(error), fix="check its name, its firewall and the network")
        ) from None
    answer = _answer(response)
    if response.status_code != 200:
        raise ServiceError(_refusal(address, response.status_code, answer))
    token = str(answer.get("value", "")).strip()  # a file that a secret is made of ends its line
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        what = f"the value of {address} is no token: it is empty, or holds white space or other signs"
        raise ServiceError(Fault(what, fix=_command(SET, address)))
    return token


def _ask(address: str) -> "HttpResponse":
    """Return the vault's answer. Raises: AzureError."""
    from azure.core import PipelineClient
    from azure.core.pipeline.policies import BearerTokenCredentialPolicy, RetryPolicy
    from azure.core.rest import HttpRequest
    from azure.identity import DefaultAzureCredential

    logging.getLogger("azure").setLevel(logging.ERROR)  # it says at length which identities there are not
    url = urlsplit(address)
    cloud = url.netloc.partition(".")[2]  # of which an identity has its own token
    client_id = next((os.environ[name] for name in CLIENT_IDS if os.environ.get(name)), None)
    credential = DefaultAzureCredential(managed_identity_client_id=client_id)
    policies = [RetryPolicy(retry_total=RETRIES), BearerTokenCredentialPolicy(credential, f"https://{cloud}/.default")]
    where = f"https://{url.netloc}"
    with PipelineClient(where, policies=policies, connection_timeout=timing.VAULT, read_timeout=timing.VAULT) as client:
        return client.send_request(HttpRequest("GET", address.rstrip("/"), params={"api-version": API_VERSION}))


def _object(value: object) -> Json:
    """Return a JSON object, empty where a value is another: who answers may be no vault."""
    return value if isinstance(value, dict) else {}


def _answer(response: "HttpResponse") -> Json:
    try:
        return _object(response.json())
    except ValueError:
        return {}


def _refusal(address: str, status: int, answer: Json) -> Fault:
    """Return what the vault says for no."""
    error = _object(answer.get("error"))
    why = first_line(Exception(error.get("message") or f"status {status}"))
    if status == 404:
        return Fault(f"there is no secret {address}", why=why, fix=_command(SET, address))
    if status == 403:
        reason = str(_object(error.get("innererror")).get("code"))
        what = f"{address} is not given to the identity that this step runs as"
        return Fault(what, why=why, fix=_command(REFUSALS.get(reason, NOT_ALLOWED), address))
    return Fault(f"{address} can't be read", why=why, fix=_command(SHOW, address))


def _command(text: str, address: str) -> str:
    url = urlsplit(address)
    return text.replace("VAULT", url.netloc.partition(".")[0]).replace("NAME", url.path.split("/")[2])
