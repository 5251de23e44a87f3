"""A blob container on this machine: the requests of azure-storage-blob that azure-ai-ml makes."""

import re
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Answer = tuple[int, dict[str, str], bytes]


class Blobs:
    """Containers are folders of `root`; a blob is a file in one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.metadata: dict[Path, dict[str, str]] = {}
        self.blocks: dict[Path, dict[str, bytes]] = {}
        self.uploads = 0  # blobs that were written: how a test sees that an upload was skipped

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """Answer a request whose path begins behind the account."""
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        path = self.root / unquote(url.path).strip("/")
        if not path.resolve().is_relative_to(self.root.resolve()):
            return 400, {}, b""
        if method == "GET" and query.get("comp") == "list":
            return 200, {"Content-Type": "application/xml"}, self.listing(path, query.get("prefix", ""))
        if method == "PUT":
            return self.put(path, query, headers, body)
        if not path.is_file():
            return 404, {"x-ms-error-code": "BlobNotFound"}, b""
        return self.get(method, path, headers)

    def put(self, path: Path, query: dict[str, str], headers: dict[str, str], body: bytes) -> Answer:
        named = {name: value for name, value in headers.items() if name.startswith("x-ms-meta-")}
        kind = query.get("comp", "")
        if kind == "metadata":
            self.metadata[path] = named
            return 200, {}, b""
        if kind == "block":
            self.blocks.setdefault(path, {})[query["blockid"]] = body
            return 201, {}, b""
        if kind == "blocklist":
            kept = self.blocks.pop(path)
            body = b"".join(kept[name] for name in re.findall(r"<Latest>(.*?)</Latest>", body.decode()))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        self.metadata[path] = named
        self.uploads += 1
        return 201, {"ETag": '"1"'}, b""

    def get(self, method: str, path: Path, headers: dict[str, str]) -> Answer:
        size = path.stat().st_size
        about = {"ETag": '"1"', "x-ms-blob-type": "BlockBlob", "Accept-Ranges": "bytes", **self.metadata.get(path, {})}
        about["Last-Modified"] = "Thu, 01 Jan 2026 00:00:00 GMT"
        if method == "HEAD":
            return 200, {**about, "Content-Length": str(size)}, b""
        asked = re.match(r"bytes=(\d+)-(\d*)", headers.get("x-ms-range", headers.get("range", "")))
        if asked is None:
            return 200, about, path.read_bytes()
        start, end = int(asked[1]), min(int(asked[2] or size), size - 1)
        if start >= size:
            return 416, {"x-ms-error-code": "InvalidRange"}, b""
        with path.open("rb") as file:
            file.seek(start)
            return 206, {**about, "Content-Range": f"bytes {start}-{end}/{size}"}, file.read(end - start + 1)

    def listing(self, container: Path, prefix: str) -> bytes:
        files = (file for file in sorted(container.rglob("*")) if file.is_file())
        named = ((str(file.relative_to(container)), file.stat().st_size) for file in files)
        entries = [
            f"<Blob><Name>{escape(name)}</Name><Properties><Content-Length>{size}</Content-Length>"
            "<BlobType>BlockBlob</BlobType><Last-Modified>Thu, 01 Jan 2026 00:00:00 GMT</Last-Modified>"
            "<Etag>1</Etag></Properties></Blob>"
            for name, size in named
            if name.startswith(prefix)
        ]
        text = f"<EnumerationResults><Blobs>{''.join(entries)}</Blobs><NextMarker/></EnumerationResults>"
        return f'<?xml version="1.0" encoding="utf-8"?>{text}'.encode()
