"""A stand-in of the hub's API on this machine: repositories are created, committed to (large files by LFS), and read.

The client reaches it through its endpoint variable, HF_ENDPOINT. What it answers is what the client asks for, as
huggingface_hub's own code and the LFS batch protocol (git-lfs/docs/api/batch.md) have it.
"""

import base64
import contextlib
import hashlib
import json

import yaml

from tests.http_server import FileServer

TOKEN = "hf_of_the_tests"


class HubServer(FileServer):
    """`repositories`: name → file name → content. `refuse`: status that every write is answered with instead."""

    def __init__(self):
        super().__init__()
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: list[tuple[str, str, list[str]]] = []
        self.objects: dict[str, bytes] = {}
        self.refuse: int | None = None

    def receive(self, handler):
        """POST and PUT."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        path = handler.path.split("?")[0]
        self.requests.append((handler.command, path, None))
        if handler.command == "PUT":  # of an upload address, which carries its own permission
            oid = path.removeprefix("/lfs/")
            if hashlib.sha256(body).hexdigest() != oid:
                return self._reply(handler, {"error": "not that object"}, 400)
            self.objects[oid] = body
            return self._reply(handler, {})
        status = self.refuse or (None if handler.headers.get("Authorization") == f"Bearer {TOKEN}" else 401)
        if status and path != "/api/validate-yaml":
            return self._reply(handler, {"error": "no"}, status)
        lines = [json.loads(line) for line in body.splitlines()]
        return self._reply(handler, *self._posted(path, lines))

    def _posted(self, path, lines):
        content = lines[0]
        if path == "/api/validate-yaml":
            return (_problems(content["content"]),)
        if path == "/api/repos/create":
            name = f"{content['organization']}/{content['name']}"
            if name in self.repositories:
                return {"error": "You already created this model repo", "url": f"{self.address}/{name}"}, 409
            self.private |= {name} if content.get("private") or content.get("visibility") == "private" else set()
            self._store(name, {".gitattributes": b""})
            return {"url": f"{self.address}/{name}", "name": name}, 200
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**asked, "actions": {"upload": {"href": f"{self.address}/lfs/{asked['oid']}"}}}
                for asked in content["objects"]
            ]
            return {"transfer": "basic", "objects": objects}, 200
        name, action = path.removeprefix("/api/models/").removesuffix("/main").rsplit("/", 1)
        if action == "preupload":
            modes = [
                {"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False} for f in content["files"]
            ]
            return {"files": modes}, 200
        assert action == "commit", path
        return self._commit(name, lines)

    def _commit(self, name, lines):
        added = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile" and len(self.objects[value["oid"]]) == value["size"]
                added[value["path"]] = self.objects[value["oid"]]
        self._store(name, {**self.repositories[name], **added})
        self.commits.append((name, lines[0]["value"]["summary"], sorted(added)))
        return {
            "commitUrl": f"{self.address}/{name}/commit/{_sha(self.repositories[name])}",
            "commitOid": "0" * 40,
        }, 200

    def _store(self, name, contents):
        """Have a repository, and all that the client may ask of its newest commit."""
        self.repositories[name] = contents
        sha = _sha(contents)
        files = [{"rfilename": file} for file in contents]
        listing = {"id": name, "sha": sha, "private": name in self.private, "siblings": files}
        tree = [
            {"type": "file", "path": file, "size": len(content), "oid": "0" * 40} for file, content in contents.items()
        ]
        for revision in ("main", sha):
            self.files[f"/api/models/{name}/revision/{revision}"] = json.dumps(listing).encode()
            self.files[f"/api/models/{name}/tree/{revision}"] = json.dumps(tree).encode()
            for file, content in contents.items():
                self.files[f"/{name}/resolve/{revision}/{file}"] = content
        self.files[f"/api/models/{name}"] = json.dumps(listing).encode()
        self.headers["X-Repo-Commit"] = sha

    def _reply(self, handler, content, status=200):
        data = json.dumps(content).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


def _mode(path):
    return "lfs" if path.endswith((".safetensors", ".npz", ".pdparams", ".bin")) else "regular"


def _sha(contents):
    return hashlib.sha1(b"".join(name.encode() + contents[name] for name in sorted(contents))).hexdigest()


def _problems(text):
    """What the hub finds wrong in the metadata of a README.md."""
    _, head, _ = text.split("---\n", 2)
    metadata = yaml.safe_load(head)
    wrong = [key for key in ("license", "library_name", "pipeline_tag") if not isinstance(metadata.get(key, ""), str)]
    return {"errors": [{"message": f'"{key}" must be a string'} for key in wrong], "warnings": []}


@contextlib.contextmanager
def hub_server(folder, monkeypatch):
    """A stand-in that the client of this process takes for the hub, with caches and token in a folder."""
    from huggingface_hub import constants

    for name in ("PLSC_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for name, value in (  # which the client reads once, when it is imported
            ("ENDPOINT", server.address),
            ("HF_HUB_CACHE", str(folder / "hub")),
            ("HF_TOKEN_PATH", str(folder / "token")),
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_DISABLE_XET", True),
            ("HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"),
        ):
            monkeypatch.setattr(constants, name, value)
        yield server
