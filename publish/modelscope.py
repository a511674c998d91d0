"""ModelScope: a release as one commit, by its own library (modelscope-hub, which the package modelscope itself stands on)."""

from __future__ import annotations

import base64
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from release.errors import PublishError
from release.hubs import Place, answering, model_scope
from release.publish.hub import Parcel, Seen

if TYPE_CHECKING:
    from modelscope_hub import HubApi

INLINE: Final = 1 << 20
"""Bytes up to which a file lies in the commit itself; larger ones go by LFS."""
LFS: Final = (".safetensors", ".bin", ".model")
KIND: Final = "model"


class ModelScope:
    """A repository on ModelScope. Its library makes no private model public, and its commits name no parent."""

    can_publish = False

    def __init__(self, place: Place, api: HubApi | None = None) -> None:
        self.place = place
        self.api = api or model_scope(write=True)

    def look(self) -> Seen:
        """Say what is there."""
        from modelscope_hub.errors import NotExistError

        with self._answering():
            try:
                info = self.api.legacy.get_repo_info(self.place.repository, KIND)
            except NotExistError:
                return Seen(exists=False)
            private = info.get("Visibility") != 5 if "Visibility" in info else bool(info.get("Private"))
            branches, tags = self.api.legacy.list_revisions_detail(self.place.repository, KIND)
            files = frozenset(file.path for file in self.api.list_repo_files(self.place.repository, KIND) if file.type != "tree")
            head = next((_commit(branch) for branch in branches if branch.get("Revision") == self.place.site.branch), "")
            return Seen(True, private, head, files, {str(tag.get("Revision")): _commit(tag) for tag in tags})

    def create(self, parcel: Parcel) -> None:
        """Make the repository, private."""
        with self._answering():
            self.api.create_repo(self.place.repository, KIND, visibility="private", license=parcel.license)

    def commit(self, parcel: Parcel, seen: Seen) -> str:
        """Send what is not there yet, and make all of it one commit; return the commit. What is there with the same digest is left out."""
        legacy = self.api.legacy
        with self._answering():
            there = (
                {file.path: str(file.sha256 or "") for file in self.api.list_repo_files(self.place.repository, KIND)}
                if seen.head
                else {}
            )
            contents = {
                name: file
                for name, file in parcel.files.items()
                if parcel.digests.get(name, "-").removeprefix("sha256:") != there.get(name)
            }
            large = {name: file for name, file in contents.items() if isinstance(file, Path) and _is_large(file)}
            objects = [{"oid": parcel.digests[name][7:], "size": file.stat().st_size} for name, file in large.items()]
            missing = legacy.validate_blobs(self.place.repository, KIND, objects) if objects else {}
            for name, file in large.items():
                if address := missing.get(parcel.digests[name][7:]):
                    self._send(address, file)
            if contents:
                actions = [_action(name, file, parcel, large=name in large) for name, file in sorted(contents.items())]
                legacy.create_commit(self.place.repository, KIND, actions, f"{parcel.cell}: {parcel.tag}", self.place.site.branch)
        return self.look().head

    def tag(self, name: str, commit: str) -> None:
        """Name a commit for good."""
        with self._answering():
            self.api.create_repo_tag(self.place.repository, KIND, name, revision=commit)

    def show(self) -> None:
        """Refuse: the library cannot."""
        raise PublishError("ModelScope's library cannot make a model public", where=str(self.place))

    def _send(self, address: str, file: Path) -> None:
        """Send a file to where the hub says. The library gives that host our token, so it must be the hub's own."""
        ours, theirs = urlsplit(self.place.site.endpoint), urlsplit(address)
        family = "." + (ours.hostname or "").removeprefix("www.")
        same = theirs.netloc == ours.netloc or (theirs.hostname or "").endswith(family)
        if not same or theirs.scheme != ours.scheme:
            raise PublishError("the hub names another host for an upload, and our token would go along", where=str(self.place))
        with file.open("rb") as stream:
            self.api.legacy.upload_blob(address, stream, file.stat().st_size)

    def _answering(self) -> AbstractContextManager[None]:
        return answering(self.place.site, str(self.place), PublishError)


def _is_large(file: Path) -> bool:
    return file.suffix in LFS or file.stat().st_size > INLINE


def _action(name: str, file: Path | bytes, parcel: Parcel, *, large: bool) -> dict[str, Any]:
    """Return one operation of a commit, as the library's own uploads spell it."""
    if large and isinstance(file, Path):
        told = {"type": "lfs", "size": file.stat().st_size, "sha256": parcel.digests[name][7:], "content": "", "encoding": ""}
    else:
        data = file.read_bytes() if isinstance(file, Path) else file
        told = {
            "type": "normal",
            "size": len(data),
            "sha256": "",
            "content": base64.b64encode(data).decode(),
            "encoding": "base64",
        }
    return {"action": "create", "path": name, **told}


def _commit(revision: dict[str, Any]) -> str:
    return str(revision.get("CommitId") or revision.get("Commit") or revision.get("Revision") or "")
