"""A key vault, an identity and a hub with a gated model, on one port of this machine.

A process reaches the vault by its real name: the port is also a proxy, which answers for it. It must be told so by the
variables of `Gated.environment`.
"""

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.azure_service.certificate import write_certificate

VAULT = "our-keys.vault.azure.net"
SECRET = f"https://{VAULT}/secrets/hub-token"
TOKEN = "hf_" + "Ab1" * 11
COMMIT = "1" * 40
GATED = {"error": "Access to model org/gated is restricted."}


def refused(reason: str) -> tuple[int, dict[str, Any]]:
    """What a vault answers to somebody who may not read."""
    error = {"code": "Forbidden", "message": "Caller may not do this.\nCaller: oid=1", "innererror": {"code": reason}}
    return 403, {"error": error}


class Gated:
    """The service, listening while it is a context."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.model = model
        self.secrets: dict[str, tuple[int, dict[str, Any]]] = {  # what stands behind /secrets/ -> the answer
            "hub-token": (200, {"value": f"{TOKEN}\n"}),
            "empty": (200, {"value": " "}),
            "two-lines": (200, {"value": f"{TOKEN}\n{TOKEN}"}),
            "other": (200, {"value": "hf_" + "0" * 33}),
            "nobody": refused("ForbiddenByRbac"),
            "policy": refused("ForbiddenByPolicy"),
            "disabled": refused("SecretDisabled"),
            "broken": (400, {"error": {"code": "BadParameter", "message": "odd"}}),
        }
        self.asked: list[str] = []
        self.certificate = write_certificate(folder, VAULT)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.certificate, folder / "key.pem")
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Gated":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self) -> dict[str, str]:
        """The variables of a step on a machine with a managed identity, whose hub is this one."""
        return {
            "HTTPS_PROXY": self.url,
            "NO_PROXY": "127.0.0.1",
            "REQUESTS_CA_BUNDLE": str(self.certificate),
            "IDENTITY_ENDPOINT": f"{self.url}/identity",
            "IDENTITY_HEADER": "secret",
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
        }

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, dict[str, Any] | bytes, dict[str, str]]:
        self.asked.append(path)
        url = urlsplit(path)
        if url.path == "/identity":
            resource = parse_qs(url.query)["resource"][0]
            return 200, {"access_token": f"for {resource}", "expires_on": "4102444800", "token_type": "Bearer"}, {}
        if url.path.startswith("/secrets/"):
            if headers.get("authorization") != "Bearer for https://vault.azure.net":
                return 401, {"error": {"code": "Unauthorized", "message": "no token"}}, {}
            missing = {"error": {"code": "SecretNotFound", "message": "A secret with that name was not found"}}
            return *self.secrets.get(url.path.removeprefix("/secrets/"), (404, missing)), {}
        if headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, GATED, {"X-Error-Code": "GatedRepo"}
        return self.hub(url.path)

    def hub(self, path: str) -> tuple[int, dict[str, Any] | bytes, dict[str, str]]:
        files = sorted(file.name for file in self.model.iterdir() if file.is_file())
        if path.startswith("/api/models/org/gated/tree/"):
            return 200, json.dumps([{"type": "file", "path": n, "oid": n, "size": 1} for n in files]).encode(), {}
        if path.startswith("/api/models/org/gated/"):
            return 200, {"id": "org/gated", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}, {}
        name = path.removeprefix(f"/org/gated/resolve/{COMMIT}/")
        if name not in files:
            return 404, {}, {"X-Error-Code": "EntryNotFound"}
        return 200, (self.model / name).read_bytes(), {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}


def handler(service: Gated) -> type[BaseHTTPRequestHandler]:
    """The handler of one service's requests."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_CONNECT(self) -> None:
            if not self.path.startswith(f"{VAULT}:"):
                self.send_error(502, "no such host")
                return
            self.send_response(200)
            self.end_headers()
            self.connection = self.request = service.context.wrap_socket(self.connection, server_side=True)
            self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
            self.close_connection = False

        def reply(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, body, more = service.answer(self.path, headers)
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **more}.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = reply

        def log_message(self, *_: object) -> None:
            pass

    return Handler
