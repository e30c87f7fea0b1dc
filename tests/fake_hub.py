"""A small HTTP server that answers as the Hugging Face hub does, for one process at a time.

    with FakeHub() as hub:
        hub.repositories["org/name"] = {"main": {"config.json": b"{}"}}
        environment = {**os.environ, **hub.environment(cache)}

Repositories are revision -> file -> content, data sets' named "datasets/org/name". `hub.gated`,
`hub.created` and `hub.commits` say what is forbidden and what was sent. HF_ENDPOINT is read when
huggingface_hub is imported, so its clients run as programs of their own (`hub.run`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY = Path(__file__).resolve().parents[1]


class FakeHub:
    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.created: list[dict[str, Any]] = []
        self.commits: list[tuple[str, str, str, list[str]]] = []
        """(repository, revision, message, files) of each commit."""
        self.unknown: list[str] = []
        handler = type("Handler", (Answers,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, cache: Path, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": str(REPOSITORY),
            "NO_PROXY": "127.0.0.1",
            **more,
        }

    def run(self, program: str, cache: Path, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program],
            env=self.environment(cache, **more),
            capture_output=True,
            text=True,
            timeout=200,
        )


def commit_of(files: dict[str, bytes]) -> str:
    """40 digits that follow from the content."""
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(name.encode() + files[name])
    return digest.hexdigest()


class Answers(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        raw = (
            body
            if isinstance(body, bytes)
            else json.dumps(body if body is not None else {}).encode()
        )
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def files(self, repository: str, revision: str, *, content: bool) -> dict[str, bytes] | None:
        """Of a revision, or None after a refusal was sent. A gated one may be listed, not read."""
        found = self.hub.repositories.get(repository)
        if found is None:
            self.refuse(404, "RepoNotFound")
        elif repository in self.hub.gated and content:
            self.refuse(403, "GatedRepo")
        else:
            for name, files in found.items():
                if revision in (name, commit_of(files)):
                    return files
            self.refuse(404, "RevisionNotFound")
        return None

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            token = self.headers.get("Authorization")
            return self.answer(200, {"name": "me"}) if token else self.refuse(401, "Unauthorized")
        path = path.replace("/api/models/", "/api/").replace("/api/datasets/", "/api/datasets%")
        if match := re.fullmatch(r"/api/([^/]+/[^/]+)/revision/(.+)", path):
            return self.info(of(match), match[2])
        if match := re.fullmatch(r"/api/([^/]+/[^/]+)/tree/([^/]+)(/.+)?", path):
            files = self.files(of(match), match[2], content=False)
            if files is None:
                return None
            return self.tree(files, (match[3] or "").strip("/"))
        if match := re.fullmatch(r"/api/([^/]+/[^/]+)", path):
            return self.info(of(match), "main")
        if match := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            files = self.files(match[1], match[2], content=True)
            if files is None:
                return None
            if match[3] not in files:
                return self.refuse(404, "EntryNotFound")
            return self.content(files[match[3]], commit_of(files))
        self.hub.unknown.append(f"{self.command} {self.path}")
        return self.refuse(404, "RepoNotFound")

    def tree(self, files: dict[str, bytes], folder: str) -> None:
        """Files below a folder, and the folders on the way, as `recursive=true` lists them."""
        start = f"{folder}/" if folder else ""
        below = {name: data for name, data in files.items() if name.startswith(start)}
        if folder and not below:
            return self.refuse(404, "EntryNotFound")
        folders = {str(up) for name in below for up in PurePosixPath(name).parents} - {".", folder}
        listed = [{"type": "directory", "path": f, "oid": "0" * 40} for f in sorted(folders)]
        return self.answer(200, [*listed, *(entry(name, data) for name, data in below.items())])

    def content(self, data: bytes, commit: str) -> None:
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self.answer(200, data, headers)
        start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{min(end, len(data) - 1)}/{len(data)}"
        return self.answer(206, data[start : end + 1], headers)

    def info(self, repository: str, revision: str) -> None:
        files = self.files(repository, revision, content=False)
        if files is not None:
            siblings = [{"rfilename": name} for name in files]
            self.answer(200, {"id": repository, "sha": commit_of(files), "siblings": siblings})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "paths-info" not in path and not self.headers.get("Authorization"):
            return self.refuse(401, "Unauthorized")
        if match := re.fullmatch(r"/api/(?:models/)?(.+)/paths-info/(.+)", path):
            files = self.files(match[1], match[2], content=False)
            asked = json.loads(body)["paths"]
            if files is None:
                return None
            return self.answer(200, [entry(n, files[n]) for n in asked if n in files])
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.hub.created.append(asked)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            known = name in self.hub.repositories
            self.hub.repositories.setdefault(name, {"main": {}})
            return self.answer(
                409 if known else 200, {"url": f"{self.hub.address}/{name}", "name": name}
            )
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            self.hub.repositories[match[1]].setdefault(match[2], {})
            return self.answer(200)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            return self.commit(match[1], match[2], [json.loads(line) for line in body.splitlines()])
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        self.hub.unknown.append(f"POST {self.path}")
        return self.refuse(404, "RepoNotFound")

    def commit(self, repository: str, revision: str, lines: list[dict[str, Any]]) -> None:
        files = self.hub.repositories[repository].setdefault(revision, {})
        sent, message = [], ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                sent.append(value["path"])
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        self.hub.commits.append((repository, revision, message, sorted(sent)))
        sha = commit_of(files)
        url = f"{self.hub.address}/{repository}/commit/{sha}"
        self.answer(200, {"commitUrl": url, "commitOid": sha, "hookOutput": ""})


def of(match: re.Match[str]) -> str:
    return match[1].replace("%", "/")


def entry(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
