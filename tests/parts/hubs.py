# ruff: noqa: PLR0911
"""Stand-ins of the two model hubs' HTTP APIs on loopback: as much of each as its real library calls, and as bad as a test tells them to be."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from distribution import Answer, Scripted, Seen, scripted

TOKEN: Final = "hf_standInTokenThatMustNotLeak0123456789"
LARGE: Final = (".safetensors", ".bin")


def git_oid(data: bytes) -> str:
    """Return git's id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def hexdigest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def said(document: object, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(document).encode(), {"Content-Type": "application/json", **headers})


@dataclass
class Repository:
    """A repository on a hub: its commits, oldest first, each with its files; tags by name."""

    private: bool = True
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    tags: dict[str, str] = field(default_factory=dict)

    def oid(self, number: int = -1) -> str:
        """Return the id of a commit."""
        listed = sorted((name, hexdigest(data)) for name, data in self.commits[number].items())
        place = number % len(self.commits)
        return hashlib.sha1(json.dumps([place, listed]).encode()).hexdigest()

    def at(self, revision: str) -> dict[str, bytes] | None:
        """Return the files at a branch, tag or commit."""
        revision = self.tags.get(revision, revision)
        if revision in ("main", "master"):
            return self.commits[-1]
        return next((files for number, files in enumerate(self.commits) if self.oid(number) == revision), None)


class Hub:
    """What both stand-ins share: repositories, what was uploaded, a log of requests, and `meddle`, which may answer instead."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.meddle: Callable[[Seen], Answer | None] = lambda seen: None
        self.server: Scripted
        self.elsewhere = ""

    def __call__(self, seen: Seen) -> Answer:
        return self.meddle(seen) or self.answer(seen, urlsplit(seen.path).path, parse_qs(urlsplit(seen.path).query))

    def answer(self, seen: Seen, path: str, query: dict[str, list[str]]) -> Answer:
        raise NotImplementedError

    def knows(self, seen: Seen) -> bool:
        return any(TOKEN in value for value in seen.headers.values())

    def upload(self, oid: str, seen: Seen) -> Answer:
        """Take a large file."""
        if hexdigest(seen.body) != oid:
            return Answer(400)
        self.blobs[oid] = seen.body
        self.uploads.append(oid)
        return Answer(200, headers={"ETag": f'"{oid}"'})

    def batch(self, seen: Seen, href: str) -> list[dict[str, Any]]:
        """Say where large files are to be sent, and which are there."""
        return [
            {**each, **({} if each["oid"] in self.blobs else {"actions": {"upload": {"href": href + each["oid"]}}})}
            for each in json.loads(seen.body)["objects"]
        ]

    def sliced(self, seen: Seen, data: bytes, **headers: str) -> Answer:
        """Answer with a file, or from where a Range asks on."""
        wanted = next((value for name, value in seen.headers.items() if name.lower() == "range"), "")
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted):
            start, end = int(match[1]), int(match[2] or len(data) - 1)
            told = {"Content-Range": f"bytes {start}-{end}/{len(data)}", **headers}
            return Answer(206, data[start : end + 1], told)
        return Answer(200, data, {"Accept-Ranges": "bytes", **headers})


class HuggingFaceHub(Hub):
    """As huggingface_hub 2.4 speaks: create, preupload, LFS batch, NDJSON commits, tags, settings, tree and resolve."""

    def answer(self, seen: Seen, path: str, query: dict[str, list[str]]) -> Answer:
        if path == "/api/validate-yaml":
            return said({"errors": [], "warnings": []})
        if seen.method == "PUT" and (match := re.fullmatch("/lfs/([0-9a-f]{64})", path)):
            return self.upload(match[1], seen)
        if path == "/api/repos/create":
            return self.create(seen)
        if match := re.fullmatch(r"/(?!api/)([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return said({"transfer": "basic", "objects": self.batch(seen, f"{self.server.url}/lfs/")})
        if match := re.fullmatch(r"/(?!api/)([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.with_repository(seen, match[1], lambda it: self.resolve(seen, it, match[2], unquote(match[3])))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)(?:/([^/]+))?)?/?", path):
            verb, revision = match[2] or "revision", unquote(match[3] or "main")
            return self.with_repository(seen, match[1], lambda it: self.about(seen, match[1], it, verb, revision))
        return Answer(404)

    def create(self, seen: Seen) -> Answer:
        asked = json.loads(seen.body)
        name = f"{asked.get('organization', 'me')}/{asked['name']}"
        if not self.knows(seen):
            return Answer(401)
        if name in self.repositories:
            return said({"error": "you already created it"}, 409)
        self.repositories[name] = Repository(private=bool(asked.get("private") or asked.get("visibility") == "private"))
        return said({"url": f"{self.server.url}/{name}", "name": name})

    def with_repository(self, seen: Seen, name: str, then: Callable[[Repository], Answer]) -> Answer:
        it = self.repositories.get(name)
        if it is None or (it.private and not self.knows(seen)):
            return said({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
        return then(it)

    def about(self, seen: Seen, name: str, it: Repository, verb: str, revision: str) -> Answer:
        files = it.at(revision)
        if files is None:
            return said({"error": "Invalid rev id"}, 404, **{"X-Error-Code": "RevisionNotFound"})
        if seen.method != "GET" and not self.knows(seen):
            return Answer(401)
        oid = next(it.oid(number) for number in range(len(it.commits)) if it.commits[number] is files)
        if verb == "revision":
            return said(
                {
                    "_id": "1",
                    "id": name,
                    "modelId": name,
                    "private": it.private,
                    "sha": oid,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                }
                | {"siblings": [{"rfilename": path} for path in sorted(files)]}
            )
        if verb == "refs":
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": to} for tag, to in it.tags.items()]
            return said(
                {"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": it.oid()}], "converts": [], "tags": tags}
            )
        if verb == "tree":
            return said([self.entry(path, data) for path, data in sorted(files.items())])
        if verb == "preupload":
            return said({"files": [self.mode(file, files) for file in json.loads(seen.body)["files"]]})
        if verb == "commit":
            return self.commit(seen, name, it)
        if verb == "tag":
            tag = json.loads(seen.body)["tag"]
            if tag in it.tags:
                return Answer(409)
            it.tags[tag] = oid
            return said({})
        if verb == "settings":
            it.private = json.loads(seen.body).get("private", json.loads(seen.body).get("visibility") == "private")
            return said({})
        return Answer(404)

    def entry(self, path: str, data: bytes) -> dict[str, Any]:
        told: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
        if path.endswith(LARGE):
            told["lfs"] = {"oid": hexdigest(data), "size": len(data), "pointerSize": 134}
        return told

    def mode(self, file: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
        path, there = file["path"], files.get(file["path"])
        large = path.endswith(LARGE)
        oid = None if there is None else hexdigest(there) if large else git_oid(there)
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def commit(self, seen: Seen, name: str, it: Repository) -> Answer:
        files = dict(it.commits[-1])
        for line in map(json.loads, seen.body.splitlines()):
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", it.oid()) != it.oid():
                return said({"error": "The branch has changed since"}, 412)
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.blobs:
                    return said({"error": "no such object"}, 400)
                files[value["path"]] = self.blobs[value["oid"]]
        it.commits.append(files)
        return said({"commitUrl": f"{self.server.url}/{name}/commit/{it.oid()}", "commitOid": it.oid(), "pullRequestUrl": None})

    def resolve(self, seen: Seen, it: Repository, revision: str, path: str) -> Answer:
        files = it.at(revision)
        if files is None or path not in files:
            return said({}, 404, **{"X-Error-Code": "EntryNotFound" if files is not None else "RevisionNotFound"})
        data = files[path]
        large = path.endswith(LARGE)
        oid = next(it.oid(number) for number in range(len(it.commits)) if it.commits[number] is files)
        told = {"X-Repo-Commit": oid, "ETag": f'"{hexdigest(data) if large else git_oid(data)}"'}
        if large and self.elsewhere:
            told |= {
                "X-Linked-Etag": f'"{hexdigest(data)}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"{self.elsewhere}/{path}",
            }
            return Answer(302, headers=told)
        return self.sliced(seen, data, **told)


class ModelScopeHub(Hub):
    """As modelscope-hub 0.5 speaks: models, LFS batch, commits, files, revisions, tags, downloads."""

    def answer(self, seen: Seen, path: str, query: dict[str, list[str]]) -> Answer:
        if seen.method == "PUT" and (match := re.fullmatch("/lfs/([0-9a-f]{64})", path)):
            return self.upload(match[1], seen)
        if path == "/api/v1/models" and seen.method in ("POST", "PUT"):
            asked = json.loads(seen.body)
            self.repositories[f"{asked['Path']}/{asked['Name']}"] = Repository(private=asked["Visibility"] == 1)
            return self.data({"Id": 1, **asked})
        match = re.fullmatch(r"/api/v1/(?:repos/)?models/([^/]+/[^/]+)(?:/(.+))?", path)
        it = match and self.repositories.get(match[1])
        if not match or not it or (it.private and not self.knows(seen)):
            return said({"Code": 10010205001, "Message": "no such model", "Success": False}, 404)
        return self.about(seen, it, match[2] or "", query)

    def about(self, seen: Seen, it: Repository, verb: str, query: dict[str, list[str]]) -> Answer:
        revision = query.get("Revision", ["master"])[0]
        files = it.at(revision)
        if files is None:
            return said({"Code": 404, "Message": "no such revision"}, 404)
        if verb == "":
            return self.data({"Visibility": 1 if it.private else 5})
        if verb == "revisions":
            tags = [{"Revision": tag, "CommitId": to} for tag, to in it.tags.items()]
            return self.data({"RevisionMap": {"Branches": [{"Revision": "master", "CommitId": it.oid()}], "Tags": tags}})
        if verb == "repo/files":
            listed = [
                {"Path": p, "Name": p, "Size": len(d), "Sha256": hexdigest(d), "Type": "blob"} for p, d in sorted(files.items())
            ]
            return self.data({"Files": listed})
        if verb == "info/lfs/objects/batch":
            return self.data({"objects": self.batch(seen, f"{self.elsewhere or self.server.url}/lfs/")})
        if verb == "commit/master":
            new = dict(files)
            for action in json.loads(seen.body)["actions"]:
                large = action["type"] == "lfs"
                new[action["path"]] = self.blobs[action["sha256"]] if large else base64.b64decode(action["content"])
            it.commits.append(new)
            return self.data({"commit": it.oid()})
        if verb == "repo/tag":
            asked = json.loads(seen.body)
            it.tags[asked["TagName"]] = asked["Ref"]
            return self.data({})
        if verb == "repo":
            data = files.get(query["FilePath"][0])
            return Answer(404) if data is None else self.sliced(seen, data, ETag=f'"{hexdigest(data)}"')
        return Answer(404)

    def data(self, document: object) -> Answer:
        return said({"Code": 200, "Success": True, "Data": document})


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Run a stand-in on a free loopback port."""
    with scripted(hub) as server:
        hub.server = server
        yield hub
