"""The prompts of a consistency check: chats and plain texts of several kinds and lengths, from a file that is pinned by its digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from release.errors import FetchError, MatrixError
from release.types import JSON, Frozen, Slug, tuples
from release.validators.endpoint import Endpoint
from release.validators.samples import complaint, json_lines


class Turn(Frozen):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(Frozen):
    """One line of a prompt file: a chat (`messages`) or a plain text that is to be continued (`text`)."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")]
    kind: Slug
    messages: tuple[Turn, ...] | None = None
    text: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Prompt:
        if bool(self.messages) == bool(self.text):
            raise ValueError("give exactly one of 'messages' and 'text'")
        return self

    def request(self, endpoint: Endpoint, **parameters: object) -> tuple[str, JSON]:
        """Return path and body of a request for an answer, with the ids of its tokens where the server shows them."""
        asked = {"model": endpoint.model, "return_token_ids": True, **parameters}
        if self.messages is None:
            return "/v1/completions", {"prompt": self.text, **asked}
        return "/v1/chat/completions", {"messages": [{"role": m.role, "content": m.content} for m in self.messages], **asked}


def read_prompts(path: Path, sha256: str) -> tuple[Prompt, ...]:
    """Read a prompt file. Raises FetchError if it is missing or has another digest, MatrixError with file and line if it is malformed."""
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise FetchError(f"the prompts cannot be read: {problem.strerror}", where=str(path)) from problem
    found = "sha256:" + hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise FetchError(f"the prompts have {found}, and the matrix says {sha256}", where=str(path), next_step="restore the file")
    prompts: dict[str, Prompt] = {}
    for where, value in json_lines(data, path, MatrixError):
        try:
            prompt = Prompt.model_validate(tuples(value))
        except ValidationError as problem:
            raise MatrixError(f"no prompt: {complaint(problem)}", where=where) from problem
        if prompt.id in prompts:
            raise MatrixError(f"prompt id {prompt.id!r} stands twice", where=where)
        prompts[prompt.id] = prompt
    return tuple(prompts.values())
