"""What a key vault refuses, and why: each is an error with the true reason, and none shows a value."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune import check, model_selector, pipeline, submit
from finetune.azure import vault
from finetune.core.errors import ParameterError, ServiceError, UnsupportedError
from finetune.params.model_import import ModelImportParams
from finetune.params.schema import SECRETS, as_shown, params_of
from tests.azure.gated import SECRET, TOKEN, VAULT, Gated, refused
from tests.conftest import ROOT, SAMPLES


@pytest.fixture
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gated]:
    """The vault, which this process finds, and asks again at once."""
    from azure.core.pipeline.policies import RetryPolicy

    monkeypatch.setattr(RetryPolicy, "sleep", lambda *_, **__: None)
    with Gated(tmp_path, tmp_path) as service:
        for name, value in service.environment().items():
            monkeypatch.setenv(name, value)
        yield service


def test_the_value_of_a_secret(gated: Gated) -> None:
    gated.secrets[f"hub-token/{'a' * 32}"] = 200, {"value": "hf_of_a_version"}
    assert vault.read_secret(SECRET) == vault.read_secret(f"{SECRET}/") == TOKEN
    assert vault.read_secret(f"{SECRET}/{'a' * 32}") == "hf_of_a_version"


@pytest.mark.parametrize(
    ("name", "what", "why", "fix"),
    [
        ("none", "there is no secret", "A secret with that name was not found", "az keyvault secret set --vault-name "),
        ("nobody", "is not given to the identity", "Caller may not do this.", '--role "Key Vault Secrets User"'),
        ("policy", "is not given to the identity", "Caller may not do this.", "az keyvault set-policy --name our-keys"),
        ("wall", "is not given to the identity", "Caller may not do this.", "through the firewall of our-keys"),
        ("disabled", "is not given to the identity", "Caller may not do this.", "--name disabled --enabled true"),
        ("broken", "can't be read", "odd", "az keyvault secret show --vault-name our-keys --name broken --query id"),
        ("silent", "can't be read", "status 418", "az keyvault secret show"),
        ("no-vault", "can't be read", "status 503", "az keyvault secret show"),
        ("odd", "is no token", "", "az keyvault secret set"),
        ("empty", "is no token", "", "az keyvault secret set --vault-name our-keys --name empty --file TOKEN_FILE"),
        ("two-lines", "is no token", "", "az keyvault secret set"),
    ],
)
def test_what_is_refused(gated: Gated, name: str, what: str, why: str, fix: str) -> None:
    gated.secrets |= {"wall": refused("ForbiddenByFirewall"), "silent": (418, {})}
    gated.secrets |= {"no-vault": (503, {"error": "none"}), "odd": (200, {})}
    with pytest.raises(ServiceError) as caught:
        vault.read_secret(f"https://{VAULT}/secrets/{name}")
    (fault,) = caught.value.faults
    assert what in fault.what and f"https://{VAULT}/secrets/{name}" in fault.what
    assert fault.why == why and fix in fault.fix
    assert "hf_" not in str(caught.value)
    asked = [path for path in gated.asked if "/secrets/" in path]
    assert len(asked) == (1 + vault.RETRIES if name == "no-vault" else 1)


def test_a_vault_that_is_not_there(gated: Gated) -> None:
    with pytest.raises(ServiceError) as caught:
        vault.read_secret("https://nowhere.vault.azure.net/secrets/x")
    (fault,) = caught.value.faults
    assert fault.what == "the key vault of https://nowhere.vault.azure.net/secrets/x can't be reached"


def test_no_identity(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")  # the others take seconds to fail
    with pytest.raises(ServiceError, match="there is no identity to read it as") as caught:
        vault.read_secret(SECRET)
    (fault,) = caught.value.faults
    assert "EnvironmentCredential" in fault.why and "--set compute_model_import=CLUSTER" in fault.fix
    assert not any("/secrets/" in path for path in gated.asked)


def test_the_identity_of_a_cluster_that_has_several(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFAULT_IDENTITY_CLIENT_ID", "the-second")
    assert vault.read_secret(SECRET) == TOKEN
    assert "client_id=the-second" in gated.asked[0]


def test_without_azure_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(UnsupportedError) as caught:
        vault.read_secret(SECRET)
    assert caught.value.faults[0].fix == 'pip install ".[azure]"'


def test_which_values_are_addresses() -> None:
    (p,) = [p for p in params_of(ModelImportParams) if p.name in SECRETS]
    for address in (SECRET, f"{SECRET}/", f"{SECRET}/{'0' * 32}", SECRET.replace("azure.net", "usgovcloudapi.net")):
        assert p.convert(address) == as_shown(p.name, address) == address
    for other in (
        *(TOKEN, "", f"https://{VAULT}/keys/hub-token", f"https://{VAULT}/secrets/", f"{SECRET}/1", f" {SECRET}"),
        *(
            SECRET.replace("https", "http"),
            "https://our-keys.vault.azure.net.evil.org/secrets/hub-token",
            f"{SECRET}?x",
        ),
        *(SECRET.replace("our-keys", "me@evil"), f"https://evil.org/{SECRET}", f"{SECRET}\n", f"{SECRET}\n{TOKEN}"),
    ):
        with pytest.raises(ValueError, match="must be https://VAULT"):
            p.convert(other)
        assert as_shown(p.name, other) == "…"


@pytest.mark.parametrize("token", [TOKEN, "correct horse battery staple"])
def test_a_token_in_its_place_is_refused_unseen(token: str, tmp_path: Path) -> None:
    """By every command that takes it, before anything is asked, sent or written."""
    name, data = "huggingface_token_secret", SAMPLES / "question_answering" / "train.jsonl"
    pipeline_file = str(ROOT / "components" / "question_answering" / "pipeline.yaml")
    given = ["--set", "huggingface_id=org/gated", f"train_file_path={data}", f"{name}={token}"]
    step = ["--task", "question_answering", "--huggingface_id", "org/gated", "--output_dir", str(tmp_path / "out")]
    for main, words in (
        (model_selector.main, [*step, f"--{name}={token}"]),
        (model_selector.main, [*step, f"--{name}", token, f"--{name}", SECRET]),
        (check.main, [pipeline_file, *given]),
        (pipeline.main, [pipeline_file, *given, "--output", str(tmp_path / "out")]),
        (submit.main, [pipeline_file, *given]),
        (submit.main, [pipeline_file, *given, "--dry-run"]),
    ):
        with pytest.raises(ParameterError) as caught:
            main(words)
        assert "revoked" in str(caught.value) or "given twice" in str(caught.value)
        assert token not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_token_anywhere_else_is_not_shown() -> None:
    with pytest.raises(ParameterError, match="unexpected word 'hf_…'"):
        submit.main(["pipeline.yaml", "--set", "huggingface_token_secret", TOKEN])
