"""What a release must be to be let in: rules of whoever pulls it, as data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from release.types.verdict import State, Status
from release.types.words import Digest, Frozen, Slug


class Policy(Frozen):
    """Rules that must all hold, beside the signature of one of the given keys, which always must.

    `state` is the least that the release must be; `chips` and `models` are those that are let in (all, where none is named);
    `not-older-than` is in days; `attested` are the statements that a trusted key must
    have signed; with `no-waivers` not one verdict may have been waived, and an expired waiver is never let in. `sources`
    are digests that it must be made from (of a source's wheel, a patch, the questions), `base` the digest of the lowest layers;
    `builders` are those whose provenance counts.
    """

    state: Literal["built", "validated"] = "validated"
    chips: tuple[Slug, ...] = ()
    models: tuple[Slug, ...] = ()
    not_older_than: int | None = Field(default=None, ge=1)
    no_waivers: bool = False
    attested: tuple[Literal["sbom", "provenance", "verdict"], ...] = ("sbom", "provenance", "verdict")
    sources: tuple[Digest, ...] = ()
    base: Digest | None = None
    builders: tuple[str, ...] = ("urn:release:builder",)


class Found(Frozen):
    """One verdict of a release, as it is attested."""

    name: str
    status: Status
    measured: str
    wanted: str


class Waived(Frozen):
    """One waiver of a release, as it is attested: `expires` is the last day on which it counts."""

    validator: str
    outcome: str
    expires: str


class Attested(Frozen):
    """The predicate `urn:release:verdict:v1` of an in-toto statement about an image: what was found about the release, and in which record."""

    cell: str
    state: State
    record: Digest
    created: str
    verdicts: tuple[Found, ...]
    waivers: tuple[Waived, ...]
