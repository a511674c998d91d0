"""Hugging Face: a release as one commit, by its own library; large files go by LFS or Xet, as hub and library agree."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from release.errors import PublishError
from release.hubs import Place, answering, hugging_face
from release.publish.hub import Parcel, Seen

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from huggingface_hub import HfApi


class HuggingFace:
    """A repository on Hugging Face, or on a hub that speaks as it does."""

    can_publish = True

    def __init__(self, place: Place, api: HfApi | None = None) -> None:
        self.place = place
        self.api = api or hugging_face(write=True)
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what it has to say is said by us

    def look(self) -> Seen:
        """Say what is there."""
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._answering():
            try:
                info = self.api.model_info(self.place.repository)
            except RepositoryNotFoundError as problem:
                if problem.response.status_code == 401 and problem.response.headers.get("X-Error-Code") != "RepoNotFound":
                    raise  # the token is none, rather than the repository
                return Seen(exists=False)
            refs = self.api.list_repo_refs(self.place.repository)
            files = frozenset(sibling.rfilename for sibling in info.siblings or ())
            return Seen(True, bool(info.private), info.sha or "", files, {tag.name: tag.target_commit for tag in refs.tags})

    def create(self, parcel: Parcel) -> None:
        """Make the repository, private."""
        with self._answering():
            self.api.create_repo(self.place.repository, private=True)

    def commit(self, parcel: Parcel, seen: Seen) -> str:
        """Send what is not there yet, and make all of it one commit on what was seen; return the commit.

        The hub is asked for each file whether it has it, so a push that broke off goes on where it was.
        """
        from huggingface_hub import CommitOperationAdd

        operations = [
            CommitOperationAdd(name, file if isinstance(file, bytes) else str(file))
            for name, file in sorted(parcel.files.items())
        ]
        with self._answering():
            done = self.api.create_commit(
                self.place.repository, operations, commit_message=f"{parcel.cell}: {parcel.tag}", parent_commit=seen.head or None
            )
        if any(operation._should_ignore for operation in operations):
            raise PublishError("the repository's .gitignore leaves files of the release out", where=str(self.place))
        return str(done.oid)

    def tag(self, name: str, commit: str) -> None:
        """Name a commit for good."""
        with self._answering():
            self.api.create_tag(self.place.repository, tag=name, revision=commit)

    def show(self) -> None:
        """Make the repository public."""
        with self._answering():
            self.api.update_repo_settings(self.place.repository, private=False)

    def _answering(self) -> AbstractContextManager[None]:
        return answering(self.place.site, str(self.place), PublishError)
