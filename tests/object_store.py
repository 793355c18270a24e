"""An object store on this machine: files over HTTP and by S3's protocol, slow and faulty as asked."""

import hashlib
import re
import threading
import time
import urllib.parse
from email.utils import formatdate

from tests.http_server import Server

CHUNK = 16 << 10


class ObjectStore(Server):
    """Serves files by path (/bucket/key) until it is closed.

    Args:
        latency: seconds before every answer. bandwidth: bytes a second over all connections; None does not limit.

    Attributes:
        files: path → content.
        faults: path → what happens to the next requests for its content, in order: 503, or "drop" after a third of it,
            or "stall", which sends nothing for a second, or bytes, which replace it first, or None.
        ranges: whether parts of files can be asked for.
    """

    protocol = "HTTP/1.1"

    def __init__(self, latency: float = 0.0, bandwidth: float | None = None):
        self.latency, self.bandwidth = latency, bandwidth
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list] = {}
        self.ranges = True
        self._line, self._free = threading.Lock(), 0.0
        super().__init__()

    def asked_for(self, path: str) -> int:
        """How often content of a file was asked for."""
        return sum(method == "GET" and asked == path for method, asked, _ in self.requests)

    def answer(self, handler) -> None:
        url = urllib.parse.urlsplit(handler.path)
        path, wanted = urllib.parse.unquote(url.path), handler.headers.get("Range")
        self.requests.append((handler.command, path, wanted))
        time.sleep(self.latency)
        if "list-type=2" in url.query:
            self._list(handler, path.strip("/"), dict(urllib.parse.parse_qsl(url.query)))
            return
        content = self.files.get(path)
        if content is None:
            self._send(handler, 404, b"")
            return
        fault = None
        if handler.command == "GET" and self.faults.get(path):
            fault = self.faults[path].pop(0)
        if fault == 503:
            self._send(handler, 503, b"")
            return
        if isinstance(fault, bytes):
            self.files[path] = content = fault
        status, headers = 200, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}
        if self.ranges:
            headers["Accept-Ranges"] = "bytes"
            part = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
            if part:
                first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
                status, headers["Content-Range"] = 206, f"bytes {first}-{last}/{len(content)}"
                content = content[first : last + 1]
        self._send(handler, status, content, headers, fault)

    def _list(self, handler, bucket: str, query: dict[str, str]) -> None:
        prefix = query.get("prefix", "")
        rows = [
            f"<Contents><Key>{key}</Key><Size>{len(content)}</Size><ETag>x</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><StorageClass>STANDARD</StorageClass></Contents>"
            for path, content in sorted(self.files.items())
            for key in [path.removeprefix(f"/{bucket}/")]
            if path.startswith(f"/{bucket}/") and key.startswith(prefix)
        ]
        text = (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><Prefix>{prefix}</Prefix><KeyCount>{len(rows)}</KeyCount><MaxKeys>1000</MaxKeys>"
            f"<IsTruncated>false</IsTruncated>{''.join(rows)}</ListBucketResult>"
        )
        self._send(handler, 200, text.encode(), {"Content-Type": "application/xml"})

    def _send(self, handler, status: int, content: bytes, headers=None, fault=None) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("Last-Modified", formatdate(1.7e9, usegmt=True))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if fault == "stall":
            time.sleep(1.0)
        if fault == "drop":
            content, handler.close_connection = content[: len(content) // 3], True
        try:
            for start in range(0, len(content), CHUNK):
                self._wait_for_the_line(len(content[start : start + CHUNK]))
                handler.wfile.write(content[start : start + CHUNK])
        except OSError:
            handler.close_connection = True  # the client has gone

    def _wait_for_the_line(self, size: int) -> None:
        """Until `size` bytes have passed it; one connection after another."""
        if self.bandwidth is None:
            return
        with self._line:
            self._free = max(self._free, time.monotonic()) + size / self.bandwidth
            free = self._free
        time.sleep(max(0.0, free - time.monotonic()))
