"""A small hub: as many of the Hugging Face hub's endpoints as its own client needs to keep dataset repositories."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_may_write"
Files = dict[str, bytes]


@dataclass
class Hub:
    """What is in it: the commits of every repository, the newest last; and what was asked of it."""

    repos: dict[str, dict[str, Files]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    large: dict[str, int] = field(default_factory=dict)  # sizes that it says files have
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def commit(self, repo: str, files: Files) -> str:
        commits = self.repos.setdefault(repo, {})
        told = f"{repo}{len(commits)}{sorted((name, oid(data)) for name, data in files.items())}"
        sha = hashlib.sha1(told.encode()).hexdigest()
        commits[sha] = files
        return sha

    def newest(self, repo: str) -> str:
        return list(self.repos[repo])[-1]


def oid(data: bytes) -> str:
    """The name of a file's content in git."""
    return hashlib.sha1(b"blob %d\x00" % len(data) + data).hexdigest()


class Refused(Exception):
    def __init__(self, status: int, code: str, text: str, repo: str = "") -> None:
        self.status, self.code, self.repo = status, code, repo
        super().__init__(text)


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A hub that listens on this machine."""
    hub = Hub()

    class Handler(_Handler):
        inside = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    inside: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.inside.asked.append(f"{self.command} {path}")
        try:
            found, headers = self._found(path, body)
            self._send(200, found, headers)
        except Refused as why:
            told = {"error": str(why), "url": f"{self.inside.url}/datasets/{why.repo}"}
            self._send(why.status, json.dumps(told).encode(), {"X-Error-Code": why.code})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _found(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        if path == "/api/repos/create":
            return _json(self._create(json.loads(body)))
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        api, kind, *rest = path.strip("/").split("/")
        if api == "datasets":  # /datasets/owner/name/resolve/revision/path
            owner, name, (_, revision, *inner) = kind, rest[0], rest[1:]
            return self._file(f"{owner}/{name}", revision, "/".join(inner))
        owner, name, what, revision = [*rest, "revision", "main"][:4] if len(rest) < 4 else rest[:4]
        repo = f"{owner}/{name}"
        if what == "preupload":
            self._may_write()
            return _json({"files": [self._mode(repo, file) for file in json.loads(body)["files"]]})
        if what == "commit":
            return _json(self._commit(repo, [json.loads(line) for line in body.splitlines()]))
        sha = self._sha(repo, revision)
        files = self.inside.repos[repo][sha]
        sizes = {path: self.inside.large.get(path, len(data)) for path, data in files.items()}
        if what == "tree":
            return _json([{"type": "file", "path": p, "size": sizes[p], "oid": oid(d)} for p, d in files.items()])
        told = [{"rfilename": p, "size": sizes[p], "blobId": oid(d)} for p, d in files.items()]
        return _json({"id": repo, "sha": sha, "siblings": told, "private": repo in self.inside.private})

    def _may_write(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "", "Invalid username or password.")

    def _sha(self, repo: str, revision: str) -> str:
        if repo not in self.inside.repos or repo in self.inside.private:
            raise Refused(401 if "Authorization" not in self.headers else 404, "RepoNotFound", "Repository not found")
        if revision == "main":
            return self.inside.newest(repo)
        if revision not in self.inside.repos[repo]:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return revision

    def _create(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._may_write()
        repo = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "others":
            raise Refused(403, "", "You don't have the rights to create a dataset under the namespace others")
        url = {"url": f"{self.inside.url}/datasets/{repo}"}
        if repo in self.inside.repos:
            raise Refused(409, "", "You already created this dataset repo", repo)
        self.inside.commit(repo, {".gitattributes": b"*.parquet filter=lfs\n"})
        return url

    def _mode(self, repo: str, file: dict[str, Any]) -> dict[str, Any]:
        there = self.inside.repos[repo][self.inside.newest(repo)].get(file["path"])
        return {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": there and oid(there)}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        self._may_write()
        files = dict(self.inside.repos[repo][self.inside.newest(repo)])
        for line in lines:
            told = line["value"]
            if line["key"] == "header" and told.get("parentCommit", self.inside.newest(repo)) != self.inside.newest(
                repo
            ):
                raise Refused(412, "", "The branch has moved")
            if line["key"] == "file":
                files[told["path"]] = base64.b64decode(told["content"])
            elif line["key"] == "deletedFile":
                del files[told["path"]]
        sha = self.inside.commit(repo, files)
        return {"commitOid": sha, "commitUrl": f"{self.inside.url}/datasets/{repo}/commit/{sha}", "hookOutput": ""}

    def _file(self, repo: str, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        sha = self._sha(repo, revision)
        data = self.inside.repos[repo][sha].get(path)
        if data is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        return data, {"ETag": f'"{oid(data)}"', "X-Repo-Commit": sha, "Content-Type": "application/octet-stream"}


def _json(value: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(value).encode(), {}
