"""HTTP servers on this machine, for tests that download and upload."""

import hashlib
import http.server
import re
import threading
from pathlib import Path


class Server:
    """Listens on a free port of this machine until it is closed, a thread for each connection.

    Subclasses answer GET and HEAD in `answer`, POST and PUT in `receive`.

    Attributes:
        address: its URL. requests: (method, path, Range) of the requests so far; subclasses fill it.
    """

    protocol = "HTTP/1.0"

    def __init__(self):
        self.requests: list[tuple[str, str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = outer.protocol

            def do_GET(self):
                outer.answer(self)

            do_HEAD = do_GET

            def do_POST(self):
                outer.receive(self)

            do_PUT = do_POST

            def log_message(self, *arguments):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """End it; connections are refused from then on. A second time does nothing."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler) -> None:
        handler.send_error(405)

    def receive(self, handler) -> None:
        handler.send_error(405)


class FileServer(Server):
    """Files with ranges.

    Args:
        folder: whose files are served.

    Attributes:
        files: path → content. headers: added to each answer. cut: how many bytes the next answers hold before the
            connection ends.
    """

    def __init__(self, folder: Path | None = None):
        self.files = {f"/{file.name}": file.read_bytes() for file in folder.iterdir()} if folder else {}
        self.headers: dict[str, str] = {}
        self.cut: list[int] = []
        super().__init__()

    def answer(self, handler):
        wanted = handler.headers.get("Range")
        path = handler.path.split("?")[0]
        self.requests.append((handler.command, path, wanted))
        content = self.files.get(path)
        if content is None:
            handler.send_error(404)
            return
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        start = int(re.fullmatch(r"bytes=(\d+)-.*", wanted)[1]) if wanted else 0
        partial = bool(wanted) and handler.headers.get("If-Range") in (None, etag)
        start = start if partial else 0
        if partial and start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if partial else 200)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.send_header("ETag", etag)
        if partial:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            end = start + self.cut.pop(0) if self.cut else len(content)
            handler.wfile.write(content[start:end])
            handler.close_connection = True
