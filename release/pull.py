"""Using a release: pull it, every digest checked, and start it with the very command of its card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from release.build import folder_of
from release.errors import UsageError, VerificationError
from release.house import House
from release.matrix.check import plan_of
from release.oci import DIGEST, sha256
from release.types import JSON

if TYPE_CHECKING:
    from release.oci import Descriptor, Layout
    from release.publish.artifact import Pulled


def pulled_folder(cell: str) -> Path:
    """Return the folder into which a release of this cell is pulled by default."""
    return folder_of(cell, Path("pulled"))


def pull(
    house: House,
    reference: str,
    into: Path | None,
    *,
    into_engine: bool = True,
    layout: Path | None = None,
    keys: Sequence[Path] = (),
    policy: Path | None = None,
) -> Pulled:
    """Bring a release from a registry or a layout folder, check all of it, and unpack it; its image goes into the engine, or `layout` keeps all.

    With `keys`, the release is verified first as `release verify` does, and what is pulled is the digest that was verified. What is on its way
    lies in a hidden folder beside the target: a broken connection, a Ctrl-C or a kill leaves what arrived whole for the next try.
    Raises VerificationError (nothing is kept then), PublishError, UsageError.
    """
    from release.publish.folder import Folder
    from release.signing import verify_release

    if Path(reference).is_dir():
        digest = verify_release(reference, keys, policy)[0] if keys or policy else ""
        folder = Folder(Path(reference))
        return _unpack(house, folder.layout, folder.held_to(digest), into, into_engine)
    arriving = layout or (into.parent if into else Path("pulled")).absolute() / f".pulling-{sha256(reference.encode())[7:19]}"
    try:
        found, entry = _fetch(reference, arriving, keys, policy)
        pulled = _unpack(house, found, entry, into, into_engine)
    except VerificationError:
        if layout is None:
            shutil.rmtree(arriving, ignore_errors=True)
        raise
    if layout is None:
        shutil.rmtree(arriving, ignore_errors=True)
    return pulled


def _fetch(reference: str, folder: Path, keys: Sequence[Path], policy: Path | None) -> tuple[Layout, Descriptor]:
    """Bring a release into a layout in `folder`, which may hold a part of it already."""
    from release import oci
    from release.publish.reference import Reference
    from release.publish.registry import pull
    from release.signing import verify_release

    where = Reference.parse(reference)
    if keys or policy:
        digest, _ = verify_release(reference, keys, policy)
        where = replace(where, digest=digest)
    layout = oci.Layout.open(folder) if (folder / "oci-layout").is_file() else oci.Layout.create(folder)
    return layout, pull(where, layout)


def _unpack(house: House, layout: Layout, entry: Descriptor, into: Path | None, into_engine: bool) -> Pulled:
    from release.publish import artifact

    cell = artifact.cell_of(layout, entry)
    pulled = artifact.unpack(layout, entry, (into or pulled_folder(cell)).absolute())
    if into_engine:
        from release.builders.image import load_image
        from release.containers import connect

        with connect(house.engine_kind) as engine:
            load_image(engine, layout, pulled.image, str(pulled.record["image"]["config"]))
    return pulled


def serve_command(house: House, folder: Path, port: int | None, *, check: bool) -> tuple[list[str], dict[str, str]]:
    """Return the card's command for the pulled release in `folder`, and the environment to run it in.

    With `check`, it must ask of this host just what our matrix says of its chip, the port must be free, and the engine must hold
    the image. Raises UsageError, VerificationError, ServingError or EngineError.
    """
    try:
        record = json.loads((folder / "release.json").read_bytes())
        line, own = [str(word) for word in record["serve"]["command"]], int(record["serve"]["port"])
        if check:
            _check_command(house, record, line, own)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise UsageError(f"{folder} holds no pulled release: {problem}", next_step="release pull --chip … --model …") from problem
    line = [word.replace("$PWD/", f"{folder.absolute()}/") if word.startswith("$PWD/") else word for word in line]
    if port is not None:
        line = [f"127.0.0.1:{port}:{own}" if word == f"127.0.0.1:{own}:{own}" else word for word in line]
    if not check:
        return line, {}
    from release.containers import connect
    from release.errors import EngineError
    from release.ports import free_port

    free_port(port or own)
    with connect(house.engine_kind) as engine:
        if not engine.has(record["image"]["config"]):
            raise EngineError(f"the engine has no image {record['image']['config']}", next_step="release pull brings it")
        return [engine.cli, *line[1:]], dict(engine.env)


def _check_command(house: House, record: JSON, line: list[str], port: int) -> None:
    """Refuse a command that is not what our own chip's container contract gives: whoever wrote the record may be anybody."""
    from release.launch import run_command

    serve, known = record["serve"], house.matrix.chip(str(record["chip"]["id"]))
    try:
        container, whose = plan_of(house.matrix, str(record["cell"])).container, str(record["cell"])
    except (KeyError, UsageError):  # a cell of somebody else's matrix: what its chip is given here must do
        container, whose = known.container, f"chip {known.id}"
    ours = run_command(
        container,
        image=str(record["image"]["config"]),
        argv=[str(word) for word in serve["argv"]],
        env={str(name): str(value) for name, value in serve["env"].items()},
        memory=serve["memory"] and str(serve["memory"]),
        publish=f"127.0.0.1:{port}:{port}",
        weights="$PWD/weights",
        extra=("--rm",),
    )
    if line != ours or not DIGEST.fullmatch(str(record["image"]["config"])):
        odd = [word for word in line if word not in ours]
        raise VerificationError(
            f"the record's command is not the one that {whose} of this matrix gives{': ' + ' '.join(odd) if odd else ''}",
            next_step="read it with --dry-run; if you trust its author, run it yourself, or overlay the cell with --matrix",
        )
