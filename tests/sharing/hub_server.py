"""A small Hub on this machine: the part of its HTTP interface that pushing and loading models need, and its failures.

Its one user is `user`, whose token is WRITER; READER sees public repositories, and may write nowhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import yaml

WRITER, READER = "hf_writer", "hf_reader"
USER = "user"

Failure = Literal["cut", "lost"] | int  # no answer; done, but no answer; a status


@dataclass
class Commit:
    message: str
    branch: str
    paths: list[str]


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[Commit] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.branches["main"]


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Answer:
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    @classmethod
    def error(cls, status: int, code: str = "", message: str = "") -> Answer:
        body = json.dumps({"error": message}).encode() if status < 500 else b"<html>"  # of a gateway before the Hub
        return cls(status, body, {"X-Error-Code": code, "X-Error-Message": message})


class Hub:
    """Repositories, large files, and which requests are to fail.

    Attributes:
        url: Where it listens.
        repositories: By their whole names.
        requests: Method and path of each, in order.
        waits: Seconds that the client has waited before it tried again.
        large_suffix: How the names of files end that are uploaded as large ones.
    """

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.waits: list[float] = []
        self.large: dict[str, bytes] = {}
        self.large_suffix = ".safetensors"
        self._failures: list[tuple[re.Pattern[str], list[Failure]]] = []
        self._lock = threading.Lock()

    def fail(self, pattern: str, *failures: Failure) -> None:
        """Let the first requests that match fail one after the other so, and go on after that."""
        self._failures.append((re.compile(pattern), list(failures)))

    def all_failed(self) -> bool:
        """Whether every failure that was planned has come about."""
        return not any(left for _, left in self._failures)

    def next_failure(self, request: str) -> Failure | None:
        with self._lock:
            for pattern, left in self._failures:
                if left and pattern.search(request):
                    return left.pop(0)
        return None

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> Answer:
        for known, pattern, respond in ROUTES:
            if method in known and (found := re.fullmatch(pattern, path)):
                with self._lock:
                    return respond(self, body, token, *map(unquote, found.groups()))
        return Answer.error(404, "EntryNotFound", f"{method} {path} is not part of this Hub")


def create(hub: Hub, body: bytes, token: str | None) -> Answer:
    asked = json.loads(body)
    name = f"{asked.get('organization') or USER}/{asked['name']}"
    if token not in (WRITER, READER):
        return Answer.error(401, message="Invalid credentials in Authorization header")
    if token != WRITER or not name.startswith(f"{USER}/"):
        return Answer.error(403, message=f"You have no rights to create a model under the namespace {name}")
    if name in hub.repositories:
        return Answer.json({"url": f"{hub.url}/{name}"}, 409)
    hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
    return Answer.json({"url": f"{hub.url}/{name}"})


def check_access(hub: Hub, body: bytes, token: str | None, name: str) -> Answer:
    allowed = token == WRITER and name.startswith(f"{USER}/")
    return Answer.json({}) if allowed else Answer.error(403, message="You are not allowed to write to this repository")


def create_branch(hub: Hub, body: bytes, token: str | None, name: str, branch: str) -> Answer:
    branches = hub.repositories[name].branches
    if branch in branches:
        return Answer.json({}, 409)
    branches[branch] = dict(branches["main"])
    return Answer.json({})


def describe(hub: Hub, body: bytes, token: str | None, name: str, revision: str | None = "main") -> Answer:
    if not readable(hub, token, name):
        return Answer.error(401, "RepoNotFound", "Repository not found")
    return Answer.json({"id": name, "sha": commit_of(hub, name), "siblings": []})


def validate(hub: Hub, body: bytes, token: str | None) -> Answer:
    found = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
    errors = [{"message": message} for message in errors_of(yaml.safe_load(found[1]) if found else None)]
    return Answer.json({"errors": errors, "warnings": []}, 400 if errors else 200)


def errors_of(head: Any) -> Iterator[str]:
    """What the Hub's documentation of model cards does not allow in the head of a card."""
    if not isinstance(head, dict):
        yield "there is no head"
        return
    texts = ("base_model", "base_model_relation", "library_name", "license", "pipeline_tag")
    yield from (f"{name} is no text" for name in texts if not isinstance(head.get(name, ""), str))
    lists = ("datasets", "tags")
    yield from (
        f"{name} is no list of texts" for name in lists if not all(isinstance(x, str) for x in head.get(name, []))
    )
    if head.get("base_model_relation", "adapter") not in ("adapter", "finetune", "merge", "quantized"):
        yield "base_model_relation is unknown"
    for model in head.get("model-index", []):
        if not model.get("name") or not model.get("results"):
            yield "model-index lacks a name or results"
        for result in model.get("results", []):
            if not (result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]):
                yield "a result lacks its task or data set"
            if not all(metric["type"] and isinstance(metric["value"], float) for metric in result["metrics"]):
                yield "a metric lacks its type or value"


def preupload(hub: Hub, body: bytes, token: str | None, name: str, branch: str) -> Answer:
    if check_access(hub, body, token, name).status != 200:
        return check_access(hub, body, token, name)
    present = hub.repositories[name].branches[branch]
    files = [
        {
            "path": path,
            "uploadMode": "lfs" if path.endswith(hub.large_suffix) else "regular",
            "shouldIgnore": False,
            "oid": oid(path, present[path], hub) if path in present else None,
        }
        for path in (file["path"] for file in json.loads(body)["files"])
    ]
    return Answer.json({"files": files})


def offer_large(hub: Hub, body: bytes, token: str | None, name: str) -> Answer:
    objects = json.loads(body)["objects"]
    for wanted in objects:
        if wanted["oid"] not in hub.large:
            wanted["actions"] = {"upload": {"href": f"{hub.url}/large/{wanted['oid']}", "header": {}}}
    return Answer.json({"transfer": "basic", "objects": objects})


def take_large(hub: Hub, body: bytes, token: str | None, wanted: str) -> Answer:
    assert hashlib.sha256(body).hexdigest() == wanted
    hub.large[wanted] = body
    return Answer()


def commit(hub: Hub, body: bytes, token: str | None, name: str, branch: str) -> Answer:
    if check_access(hub, body, token, name).status != 200:
        return check_access(hub, body, token, name)
    repository, message, changed = hub.repositories[name], "", {}
    for line in body.splitlines():
        entry = json.loads(line)
        key, value = entry["key"], entry["value"]
        if key == "header":
            message = value["summary"]
        elif key == "file":
            changed[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            changed[value["path"]] = hub.large[value["oid"]]
        else:
            raise AssertionError(f"{key} is not part of this Hub")
    repository.branches[branch].update(changed)
    repository.commits.append(Commit(message, branch, sorted(changed)))
    sha = commit_of(hub, name)
    return Answer.json({"commitUrl": f"{hub.url}/{name}/commit/{sha}", "commitOid": sha, "success": True})


def resolve(hub: Hub, body: bytes, token: str | None, name: str, revision: str, path: str) -> Answer:
    if not readable(hub, token, name):
        return Answer.error(401, "RepoNotFound", "Repository not found")
    branches = hub.repositories[name].branches
    sha = commit_of(hub, name)
    if revision not in (*branches, sha):
        return Answer.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    files = branches.get(revision, branches["main"])
    if path not in files:
        return Answer.error(404, "EntryNotFound", "Entry not found")
    return Answer(200, files[path], {"ETag": f'"{oid(path, files[path], hub)}"', "X-Repo-Commit": sha})


def readable(hub: Hub, token: str | None, name: str) -> bool:
    repository = hub.repositories.get(name)
    return repository is not None and (token == WRITER or not repository.private)


def commit_of(hub: Hub, name: str) -> str:
    return hashlib.sha1(f"{name} {len(hub.repositories[name].commits)}".encode()).hexdigest()


def oid(path: str, content: bytes, hub: Hub) -> str:
    if path.endswith(hub.large_suffix):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


NAME = r"([^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("POST", "/api/repos/create", create),
    ("GET", f"/api/models/{NAME}/auth-check/write", check_access),
    ("GET", f"/api/models/{NAME}", describe),
    ("GET", f"/api/models/{NAME}/revision/([^/]+)", describe),
    ("POST", f"/api/models/{NAME}/branch/([^/]+)", create_branch),
    ("POST", "/api/validate-yaml", validate),
    ("POST", f"/api/models/{NAME}/preupload/([^/]+)", preupload),
    ("POST", f"/{NAME}.git/info/lfs/objects/batch", offer_large),
    ("PUT", "/large/([^/]+)", take_large),
    ("POST", f"/api/models/{NAME}/commit/([^/]+)", commit),
    ("GET HEAD", f"/{NAME}/resolve/([^/]+)/(.+)", resolve),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def respond(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        failure = self.hub.next_failure(request)
        if isinstance(failure, int):
            answer = Answer.error(failure, message="scripted")
            answer.headers |= {"Retry-After": "3"} if failure == 429 else {}
        elif failure != "cut":
            answer = self.hub.answer(self.command, path, body, token)
        if failure in ("cut", "lost"):
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = respond  # noqa: N815 - http.server looks for these names

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serve() -> Iterator[Hub]:
    """A Hub without repositories, for as long as the block lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
