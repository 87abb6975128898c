"""A server that speaks as much of Hugging Face's hub as an upload of small files and a download ask for."""

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class Hub(http.server.ThreadingHTTPServer):
    """The hub: `models` has the files of each model by its id. `gated/…` are refused."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, Files] = {}
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running() -> Iterator[Hub]:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, value: object = None, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, model: str) -> bool:
        """Whether a model is not there for whoever asks, who is told so as by the hub."""
        if model.startswith("gated/"):
            self.answer(403, {"error": "gated"}, X_Error_Code="GatedRepo")
        elif model not in self.server.models:
            self.answer(401, {"error": "Invalid username or password."}, X_Error_Code="RepoNotFound")
        else:
            return False
        return True

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        listing, model = parts[0] == "api", "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if self.refuse(model):
            return
        files = self.server.models[model]
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        if not listing:  # user/name/resolve/revision/file
            content = files["/".join(parts[4:])]
            tag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.answer(200, content, X_Repo_Commit=commit, ETag=tag)
        elif parts[4:5] == ["tree"]:
            known = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
            self.answer(200, known)
        elif parts[4:6] == ["revision", "none"]:
            self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        else:
            self.answer(200, {"id": model, "sha": commit, "siblings": [{"rfilename": name} for name in files]})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.strip("/").split("/")
        if parts[:2] == ["api", "validate-yaml"]:
            self.answer(200, {"errors": [], "warnings": []})
        elif self.headers.get("Authorization") not in {f"Bearer {token}" for token in self.server.tokens}:
            self.answer(401, {"error": "Invalid username or password."})
        elif parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            model = f"{asked['organization']}/{asked['name']}"
            known = model in self.server.models
            self.server.models.setdefault(model, {})
            self.answer(409 if known else 200, {"url": f"{self.server.url}/{model}"})
        elif parts[4] == "preupload":
            plain = {"uploadMode": "regular", "shouldIgnore": False}  # no large files by themselves
            self.answer(200, {"files": [{"path": item["path"], **plain} for item in json.loads(body)["files"]]})
        else:  # a commit: a line of JSON for each file
            model = "/".join(parts[2:4])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.models[model][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.server.url}/{model}/commit/0"}
            )

    def log_message(self, *_: object) -> None:
        pass
