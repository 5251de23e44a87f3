"""The names and places of the stand-in's one workspace and one registry, and what requests and answers are."""

import uuid
from dataclasses import dataclass
from dataclasses import field as default
from pathlib import Path
from typing import Any

Json = dict[str, Any]
SUBSCRIPTION, GROUP, WORKSPACE = "00000000-0000-0000-0000-000000000001", "rg", "ws"
REGISTRY = "company"
ROOT = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.MachineLearningServices"
CONTAINERS = {"workspaceblobstore": "azureml-blobstore", "workspaceartifactstore": "azureml"}
FINISHED = ("Completed", "Failed", "Canceled")
KEY = "the-endpoint-key"


@dataclass(frozen=True)
class Request:
    """A request: `path` is what stands behind the workspace, or the whole path where there is none."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any

    @property
    def parts(self) -> list[str]:
        return self.path.split("/")


@dataclass(frozen=True)
class Answer:
    """An answer: a JSON value, or bytes and their headers."""

    status: int = 200
    body: Any = b""
    headers: Json = default(default_factory=dict)


def missing(what: str) -> Answer:
    """The answer where nothing is."""
    return Answer(404, {"error": {"code": "ResourceNotFound", "message": f"{what} is not there"}})


def resource(path: str, body: Json) -> Json:
    """A resource as ARM gives it back."""
    who = {"createdAt": "2026-01-01T00:00:00Z", "createdBy": "you", "lastModifiedAt": "2026-01-01T00:00:00Z"}
    names = path.split("/")
    where = f"{ROOT}/workspaces/{WORKSPACE}/{path}"
    return {**body, "id": where, "name": names[-1], "type": names[0], "systemData": who}


def upload_place(url: str, folder: Path) -> Json:
    """A container of its own for what is to be uploaded."""
    container = f"upload-{uuid.uuid4().hex}"
    where = f"{url}/acct.blob.local/{container}"
    (folder / "blob" / container).mkdir()
    sas = {"credentialType": "SAS", "sasUri": f"{where}?sig=1"}
    reference = {"blobUri": where, "storageAccountArmId": "acct", "credential": sas}
    return {"blobReferenceForConsumption": reference, "pendingUploadId": container}


def logs_of(home: Path) -> dict[str, Path]:
    """The logs of a step by the names that Azure ML gives them."""
    files = sorted(home.glob("log*.txt"))
    if len(files) == 1:
        return {"user_logs/std_log.txt": files[0]}
    ranks = {file: file.stem.removeprefix("log").removeprefix(".rank") or "0" for file in files}
    return {f"user_logs/std_log_process_{rank}.txt": file for file, rank in ranks.items()}
