"""What a plan is pinned to, pin by pin: read out of a plan, put into one, changed by what a command line says. Nothing is written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from release.errors import UsageError
from release.matrix import parse
from release.matrix.load import Matrix
from release.types import COMMIT, IMAGE, SHA256, Base, Checkpoint, GitSource, Plan, Unknown, Weights, Wheel, dump, split_cell
from release.types.words import RELATIVE, VERSION

OPEN: Final = "has a name and no commit yet: it is planned by the name"
"""Why a commit is unknown of which a command line gave the tag alone."""
UNSEEN: Final = "digest unknown"
"""What stands for the digest of a wheel of which a command line gave the version alone."""

NAMED: Final = re.compile(
    r"(?:site|dist)-packages/(\w+)(?:/|\.py\b)"
    r"|\b([A-Za-z0-9][\w.]{0,80})-[0-9][\w.+!]{0,40}-(?:[\w.]{1,80}-){2,3}[\w.]{1,80}\.whl\b"
    r"|(?<![\w.-])([A-Za-z0-9][\w.-]{0,80})==[0-9]"
)
"""How a log names a package: by a file of it where Python installs it, by its wheel, or as a requirement."""


@dataclass(frozen=True, order=True)
class Pin:
    """One thing that can be pinned on its own.

    `kind` is base, source, patches (of a source), package (known to be in the base image), wheel, model or weights (the tool's).
    """

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return {"base": "base", "model": "model", "patches": f"{self.name}.patches"}.get(self.kind, self.name)


Pins = Mapping[Pin, Any]
"""All pins of one plan, with their values typed as in the plan; a wheel's is `version sha256:…`, or `version digest unknown`."""


def texts(pins: Pins) -> dict[str, str]:
    """Return each pin in a few words, by its spelling; the wheels, of which there are a hundred, as one that changes with any of them."""
    found = {str(pin): text_of(value) for pin, value in pins.items() if pin.kind != "wheel"}
    wheels = [f"{pin}={value}" for pin, value in sorted(pins.items(), key=lambda each: each[0]) if pin.kind == "wheel"]
    return found | ({"wheels": f"{len(wheels)} {_sha256(' '.join(wheels))[:19]}"} if wheels else {})


def differences(before: Pins, then: Pins) -> dict[str, tuple[str, str]]:
    """Return the pins of one plan that have become others, each wheel by its name, in a few words: what they were, what they are."""
    return {str(pin): (text_of(before[pin]), text_of(value)) for pin, value in then.items() if before[pin] != value}


def wheel_named(words: str, pins: Pins) -> str:
    """Return the pin NAME==VERSION of the package that an error's words name: by files under site-packages, a wheel, or a requirement.

    Empty where they name none, more than one, or one that is not pinned: frames of several packages do not say whose fault it is. What is
    imported under another name than its wheel's is not known to be that.
    """
    from release.builders.wheels import normalised

    named = {normalised(next(filter(None, found.groups()))) for found in NAMED.finditer(words)}
    known = dict[str, str]()
    for pin, value in pins.items():
        if isinstance(value, Wheel):
            known[normalised(value.name)] = value.wheel
        elif pin.kind in ("wheel", "package") and isinstance(value, str):
            known[normalised(pin.name)] = f"{pin.name}=={value.partition(' ')[0]}"
    return known.get(named.pop(), "") if len(named) == 1 else ""


def traits(plan: Plan) -> dict[str, str]:
    """Return what cells can have in common beside pins."""
    return {"chip": plan.chip.id, "model id": plan.model.id, "precision": plan.precision, "engine": plan.engine}


def pins_of(plan: Plan, matrix: Matrix) -> Pins:
    """Return the pins of a plan; those of its wheels are read from the matrix."""
    found: dict[Pin, Any] = {Pin("base"): plan.base, Pin("model"): plan.model.checkpoint}
    for source in plan.sources:
        found[Pin("source", source.name)] = source.model_copy(update={"patches": None})
        if source.patches is not None:
            found[Pin("patches", source.name)] = source.patches
    found |= {Pin("package", name): version for name, version in plan.packages.items()}
    if plan.wheels is not None:
        found |= wheel_pins(matrix, plan.wheels)
    if plan.weights is not None:
        found[Pin("weights", plan.weights.tool)] = plan.weights
    return found


def wheel_pins(matrix: Matrix, path: str) -> Mapping[Pin, str]:
    """Return the pins of a wheels' file, each `version sha256:…`, parsed once for each state of it. Raises FetchError for one that is none."""
    file = matrix.file(path)
    facts = file.stat()
    return _wheel_pins_once(file, (facts.st_mtime_ns, facts.st_size))


@cache
def _wheel_pins_once(path: Path, stamp: tuple[int, int]) -> Mapping[Pin, str]:
    from release.builders.wheels import normalised, read_pins

    return {Pin("wheel", normalised(pin.name)): f"{pin.version} {pin.digest}" for pin in read_pins(path)}


def wheels_text(pins: Pins) -> str:
    """Return the wheels among the pins as a file that pip reads; empty where there are none."""
    wheels = sorted((pin.name, *str(value).split(" ", 1)) for pin, value in pins.items() if pin.kind == "wheel")
    return "".join(f"{name}=={version} --hash={digest}\n" for name, version, digest in wheels)


def with_pins(plan: Plan, values: Pins, before: Pins) -> Plan:
    """Return the plan with other pins than those that it had `before`. Other wheels than those are known by their digest alone."""
    named = {source.name: source for source in plan.sources}
    names = [*named, *(pin.name for pin in values if pin.kind == "source" and pin.name not in named)]
    sources = tuple(
        values[Pin("source", name)].model_copy(update={"patches": values.get(Pin("patches", name))})
        for name in names
        if Pin("source", name) in values
    )
    update: dict[str, Any] = {
        "base": values[Pin("base")],
        "model": plan.model.model_copy(update={"checkpoint": values[Pin("model")]}),
        "sources": sources,
        "packages": {pin.name: value for pin, value in values.items() if pin.kind == "package"},
        "weights": next((value for pin, value in values.items() if pin.kind == "weights"), None),
    }
    if (text := wheels_text(values)) != wheels_text(before):
        update["wheels_sha256"] = _sha256(text)
    return plan.model_copy(update=update)


@dataclass(frozen=True)
class Bump:
    """A pin as a command line names it, `NAME`, `NAME.CHIP` or `NAME.MODEL`, and what it is to be."""

    name: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Bump:
        """Return what NAME=VALUE says. Raises UsageError for anything else."""
        name, _, value = text.partition("=")
        if not name or not value:
            raise UsageError(f"--bump {text}: is not PIN=VALUE", next_step="as in --bump flaggems=5.3.3")
        return cls(name, value)

    def fits(self, cell: str, pin: Pin) -> bool:
        """Say whether this pin of this cell is meant."""
        return self.name in spellings(cell, pin)


def spellings(cell: str, pin: Pin) -> tuple[str, str, str]:
    """Return how a pin of a cell can be named: by itself, on its chip, for its model."""
    chip, model, _ = split_cell(cell)
    return str(pin), f"{pin}.{chip}", f"{pin}.{model}"


def bumped(cell: str, pins: Pins, bumps: Iterable[Bump]) -> Pins:
    """Return the pins of a cell with those that are meant as they are to be. Raises UsageError for a value that a pin cannot take."""
    values = dict(pins)
    for bump in bumps:
        values |= {pin: CHANGES[pin.kind](values[pin], bump) for pin in values if bump.fits(cell, pin)}
    return values


def check_known(bumps: Iterable[Bump], known: Iterable[tuple[str, Pin]]) -> None:
    """Raise UsageError with near misses for a bump that is about no pin of any cell."""
    spelled = {word for cell, pin in known for word in spellings(cell, pin)}
    for bump in bumps:
        if bump.name not in spelled:
            plain = sorted(word for word in spelled if "." not in word)
            raise UsageError(
                f"there is no pin {bump.name!r}{parse.near(bump.name, spelled)}",
                next_step=f"there are: {', '.join(plain[:20])}{' …' if len(plain) > 20 else ''}; and each as PIN.CHIP, PIN.MODEL",
            )


def text_of(value: Any) -> str:
    """Return a pin's value in a few words."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, Unknown) or value is None:
        text = "unknown"
    elif isinstance(value, GitSource):
        text = value.commit if isinstance(value.commit, str) else value.tag or "unknown"
        text += f", patch {text_of(value.vendor_patch.sha256)}" if value.vendor_patch else ""
    elif isinstance(value, Wheel):
        text = f"{value.version} {UNSEEN if value.sha256 == _stand_in(value.wheel) else value.sha256}"
    elif isinstance(value, Base):
        made = f"made here {_sha256(str(dump(value)))[:19]}"
        text = value.image or (f"to be got: {text_of(value.access.name)}" if value.access else made)
    elif isinstance(value, Checkpoint) and value.hub:
        text = f"{value.hub.repository} {text_of(value.hub.revision)}"
    elif isinstance(value, Weights):
        version = f" {text_of(value.version)}" if value.version else ""
        text = f"{value.tool}{version} {_sha256(str(dump(value)))[:19]}"
    else:
        text = f"{value.path} {_sha256(str(dump(value)))[:19]}"
    return text


def _source(value: GitSource | Wheel, bump: Bump) -> GitSource | Wheel:
    """Return the source at the commit, tag, version or digest that is meant; of one with a vendor's patch, the digest is the patch's."""
    text, digest = bump.value, SHA256.fullmatch(bump.value)
    if isinstance(value, Wheel):
        if digest:
            return value.model_copy(update={"sha256": text})
        _want(VERSION, bump, "a version, or a digest sha256:…")
        wheel = f"{value.name}=={text}"
        return value if text == value.version else value.model_copy(update={"wheel": wheel, "sha256": _stand_in(wheel)})
    if text in (value.commit, value.tag):
        return value
    if digest and value.vendor_patch:
        return value.model_copy(update={"vendor_patch": value.vendor_patch.model_copy(update={"sha256": text})})
    named = not COMMIT.fullmatch(text)
    commit: str | Unknown = Unknown(unknown=OPEN) if named else text
    return value.model_copy(update={"commit": commit, "tag": text if named else None, "branch": None, "tree": None})


def _wheel(value: str, bump: Bump) -> str:
    version = value.partition(" ")[0]
    if SHA256.fullmatch(bump.value):
        return f"{version} {bump.value}"
    _want(VERSION, bump, "a version, or a digest sha256:…")
    return value if bump.value == version else f"{bump.value} {UNSEEN}"


def _stand_in(wheel: str) -> str:
    """Return what stands in a plan for the digest of NAME==VERSION that nobody knows: it is shown to no one."""
    return _sha256(f"{wheel} {UNSEEN}")


def _model(value: Checkpoint, bump: Bump) -> Checkpoint:
    if value.hub is None:
        raise UsageError(
            f"--bump {bump.name}: the checkpoint is a folder, pinned by the digest of every file",
            next_step="write the new digests into a model file of your own, and plan with --matrix",
        )
    _want(COMMIT, bump, "a revision of 40 hex digits")
    return value.model_copy(update={"hub": value.hub.model_copy(update={"revision": bump.value})})


def _tool(value: Weights, bump: Bump) -> Weights:
    _want(VERSION, bump, "a version")
    return value.model_copy(update={"version": bump.value})


def _base(value: Base | Unknown, bump: Bump) -> Base:
    """Return the base image that is meant: NAME@sha256:…, or a digest alone where a name is known."""
    text, known = bump.value, ""
    if isinstance(value, Base):
        if value.image and text in (value.image, value.image.partition("@")[2]):
            return value
        known = value.image or (value.access.name if value.access and isinstance(value.access.name, str) else "")
        known = re.sub(r"(@.*|:[^/:]*)$", "", known)
    if SHA256.fullmatch(text) and known:
        text = f"{known}@{text}"
    if IMAGE.fullmatch(text):
        return Base(image=text)
    if SHA256.fullmatch(text):
        raise UsageError(
            f"--bump {bump.name}={text}: the base image has no name yet", next_step="write NAME@sha256:<64 hex digits>"
        )
    name = re.sub(r":[^/:]*$", "", known) or "NAME"
    tagged = text.partition("@")[0] if re.search("[/:]", text) else f"{name}:{text}"
    raise UsageError(
        f"--bump {bump.name}={text}: is no digest, and a base image is pinned by digest: a tag may move",
        next_step=f"`docker buildx imagetools inspect {tagged}` shows it; write {name}@sha256:<64 hex digits>",
    )


def _want(pattern: re.Pattern[str], bump: Bump, what: str) -> None:
    if not pattern.fullmatch(bump.value):
        raise UsageError(f"--bump {bump.name}={bump.value}: is not {what}")


def _patches(value: str, bump: Bump) -> str:
    _want(RELATIVE, bump, "a patch set such as NAME/VERSION")
    return bump.value


def _package(value: str | Unknown, bump: Bump) -> str:
    _want(VERSION, bump, "a version")
    return bump.value


CHANGES: Final[Mapping[str, Callable[[Any, Bump], Any]]] = {
    "base": _base,
    "source": _source,
    "patches": _patches,
    "package": _package,
    "wheel": _wheel,
    "model": _model,
    "weights": _tool,
}
"""How a pin of each kind takes the value of a command line. Each raises UsageError for what it cannot be."""


def _sha256(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
