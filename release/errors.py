"""Every way in which `release` can refuse: one class a kind, each with its exit code and a next step."""

from __future__ import annotations

from typing import ClassVar, Self


class ReleaseError(Exception):
    """Something stopped the work, in a form that a person can act on.

    The first line says what is wrong and where (`cpu/tiny-qwq@bf16: unpatch: …`); `next_step` says what to do about it.
    `exit_code` is the exit status of the process: 0 done, 1 other, 2 usage or matrix, 3 a stage failed, 4 a verdict blocks,
    5 verification refused.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, next_step: str = "", where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        self.where = where

    def located(self, where: str) -> Self:
        """Put `where` in front of the place that the error already names, and return the error itself."""
        self.where = f"{where}: {self.where}" if self.where else where
        return self

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class UsageError(ReleaseError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = 2


class MatrixError(ReleaseError):
    """A matrix file is wrong; the message names file, line and dotted key."""

    exit_code = 2


class StoreError(ReleaseError):
    """The store cannot keep or give back an entry (disk full, no permission, damaged entry)."""

    exit_code = 3


class StageError(ReleaseError):
    """A stage of a build failed."""

    exit_code = 3


class FetchError(StageError):
    """An input could not be had, or its digest is not the one that is pinned."""


class PatchError(StageError):
    """A patch set is malformed, unsafe, not the pinned one, or does not apply."""


class RequestError(PatchError):
    """What was asked for is not there, or would replace what is: at the command line, whoever typed it made a mistake of usage."""


class TemplateError(StageError):
    """A template cannot be rendered, or a value cannot be written into it safely."""


class EngineError(StageError):
    """The container engine is missing, not running, or refused what was asked."""


class HostError(StageError):
    """A host is at fault, and not the cell that was tried on it."""


class StagingError(StageError):
    """An image does not reach hosts through their registry, and neither the cell nor one host is at fault."""


class ServingError(StageError):
    """A server did not become healthy, died, or answered outside its protocol."""


class PublishError(StageError):
    """A registry cannot be reached, refused what was asked, or answered outside its protocol."""


class VerdictError(ReleaseError):
    """A verdict blocks the release."""

    exit_code = 4


class VerificationError(ReleaseError):
    """Something that was pulled or read is not what its digest, signature or policy says it must be."""

    exit_code = 5


class UnsignedError(VerificationError):
    """Nobody has signed what was to be verified."""

    exit_code = 10


class WrongKeyError(VerificationError):
    """It is signed, and by no key that is trusted."""

    exit_code = 11


class IncompleteError(VerificationError):
    """A part that a release must have is not there."""

    exit_code = 12


class PolicyError(VerificationError):
    """It is what it says it is, and not what the policy lets in."""

    exit_code = 13
