"""Which workspace is meant, and what the service says, as errors of ours."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.azure.service.connection import WORKSPACE, Place, connect, explained, find_place, require
from finetune.core.errors import FinetuneError, ParameterError, ServiceError, UnsupportedError


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WORKSPACE.values():
        monkeypatch.delenv(name, raising=False)


def test_options_win_over_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_place({}) == (Place(), [])
    assert find_place({"--registry": "r"}) == (Place(registry="r"), [])
    monkeypatch.setenv("AZUREML_ARM_SUBSCRIPTION", "s")
    monkeypatch.setenv("AZUREML_ARM_RESOURCEGROUP", "g")
    monkeypatch.setenv("AZUREML_ARM_WORKSPACE_NAME", "w")
    assert find_place({}) == (Place("s", "g", "w"), [])
    assert find_place({"--workspace": "other"}) == (Place("s", "g", "other"), [])
    assert str(find_place({})[0]) == "workspace w in g"


def test_a_place_that_is_not_whole_or_two() -> None:
    _, faults = find_place({"--workspace": "w"})
    assert [fault.what for fault in faults] == ["--subscription is missing", "--resource-group is missing"]
    assert faults[0].fix == "--subscription NAME, or set AZUREML_ARM_SUBSCRIPTION"
    _, faults = find_place({"--workspace": "w", "--registry": "r"})
    assert [fault.what for fault in faults] == ["--registry and --workspace are both given"]


def test_without_azure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("azure.ai.ml", "azure.identity"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnsupportedError) as caught:
        connect(Place("s", "g", "w"))
    assert caught.value.faults[0].fix == 'pip install ".[azure]"'


@pytest.mark.slow
def test_without_a_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParameterError, match="no workspace is given") as caught:
        connect(Place())
    assert caught.value.faults[0].fix == "--subscription NAME --resource-group NAME --workspace NAME"


def errors() -> Iterator[tuple[Exception, str, str]]:
    """What azure raises, and what is said of it."""
    from azure.ai.ml.exceptions import MlException
    from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ServiceRequestError

    forbidden = HttpResponseError("You may not")
    forbidden.status_code = 403
    yield ClientAuthenticationError("no\ntoken"), "sending: no credential is accepted", "az login"
    yield ServiceRequestError("no route"), "sending: Azure ML can't be reached", "check the network and the names"
    yield forbidden, "sending: Azure ML refuses", "ask for the role AzureML Data Scientist there"
    yield HttpResponseError("too many"), "sending: Azure ML refuses", ""
    yield MlException("odd", "odd"), "sending: it failed", ""


@pytest.mark.slow
def test_errors_of_azure_become_ours() -> None:
    for error, what, fix in errors():
        with pytest.raises(ServiceError) as caught, explained("sending"):
            raise error
        (fault,) = caught.value.faults
        assert (fault.what, fault.fix) == (what, fix)
        assert fault.why.split()[0] == str(error).split()[0]


@pytest.mark.slow
def test_every_credential_that_was_tried_has_a_line() -> None:
    from azure.core.exceptions import ClientAuthenticationError

    said = "It failed.\nAttempted:\n\tOneCredential: not set up.\nVisit a page.\n\tLastCredential: " + "expired " * 30
    with pytest.raises(ServiceError) as caught, explained("sending"):
        raise ClientAuthenticationError(said)
    first, last = caught.value.faults[0].why.split("\n    ")
    assert first == "OneCredential: not set up."
    assert last.startswith("LastCredential: expired ") and len(last) <= 160


@pytest.mark.slow
def test_errors_of_ours_stay() -> None:
    with pytest.raises(FinetuneError, match="mine"), explained("sending"):
        raise ParameterError("mine")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_name_that_is_not_there() -> None:
    from azure.core.exceptions import HttpResponseError, ResourceNotFoundError

    def missing() -> None:
        raise ResourceNotFoundError("not found")

    def refused() -> list[str]:
        raise HttpResponseError("no")

    with pytest.raises(ParameterError, match=r"no compute 'gpu-clustr'; did you mean gpu-cluster\?") as caught:
        require("compute", "gpu-clustr", missing, lambda: ["cpu", "gpu-cluster"])
    assert caught.value.faults[0].why == "there are: cpu, gpu-cluster"
    with pytest.raises(ParameterError) as caught:
        require("compute", "gpu", missing, refused)
    assert caught.value.faults[0].why == "not found"
    require("compute", "gpu", lambda: None, refused)
