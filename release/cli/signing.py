"""The commands of the supply chain: keys, sign, verify."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group()
def keys() -> None:
    """Make the keys that releases are signed with: P-256, as cosign takes them."""


@keys.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def new(file: Path) -> None:
    """Write a new private key to FILE and its public key to FILE.pub. $RELEASE_KEY_PASSPHRASE encrypts it."""
    from release.publish.keys import new_key

    public = new_key(file)
    click.echo(f"{file}      keep it to yourself")
    click.echo(f"{file}.pub  give it to whoever verifies; its digest is {public.hint}")


@keys.command()
@click.argument("old", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("new", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("references", nargs=-1)
def rotate(old: Path, new: Path, references: tuple[str, ...]) -> None:
    """Sign with the key in NEW, made if it is not there, the published releases that OLD (a .pub file) has signed.

    The old signatures stay: give both keys to `release verify` until nobody trusts the old one any more.
    """
    from release.publish.keys import new_key
    from release.signing import rotate as sign_anew

    if not new.exists():
        click.echo(f"{new}.pub  give it to whoever verifies; its digest is {new_key(new).hint}")
    for line in sign_anew(old, new, references):
        click.echo(line)


@click.command()
@click.argument("reference")
@click.option("--key", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The private key's file.")
def sign(reference: str, key: Path) -> None:
    """Sign a published release (HOST/NAMESPACE/CHIP/MODEL:TAG), its index and its image, so that cosign verifies them too.

    Of the image its bill of materials (CycloneDX), its provenance (SLSA) and its verdict are attested.

    The passphrase of an encrypted key is taken from $RELEASE_KEY_PASSPHRASE.
    """
    from release.signing import sign_release

    for line in sign_release(reference, key):
        click.echo(line)


@click.command()
@click.argument("reference")
@click.option(
    "--key",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="A public key that you trust.",
)
@click.option(
    "--policy", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A YAML file of rules [default: validated]."
)
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
def verify(reference: str, files: tuple[Path, ...], policy: Path | None, as_json: bool) -> None:
    """Say whether a release can be let in: signed by one of the keys, what its record says, and what the policy wants.

    REFERENCE is a published release, or the folder of a bundle.

    Exit codes: 5 tampered, 10 unsigned, 11 signed by others alone, 12 incomplete, 13 against the policy.
    """
    from release.show.text import bare, text
    from release.signing import verify_release

    digest, checks = verify_release(reference, files, policy)
    if as_json:
        click.echo(
            json.dumps({"digest": digest, "checks": [{"what": each.what, "found": each.found} for each in checks]}, indent=1)
        )
        return
    from rich.markup import escape

    table = bare()
    for each in checks:
        table.add_row(each.what, escape(each.found))
    click.echo(text(table))


@click.group()
def bundle() -> None:
    """A release in one folder, with its signatures, for places without a network."""


@bundle.command("export")
@click.argument("reference")
@click.argument("folder", type=click.Path(path_type=Path))
def export_(reference: str, folder: Path) -> None:
    """Bring a published release and all that speaks of it into a new FOLDER, an OCI layout.

    `release verify FOLDER --key FILE.pub` and `release pull FOLDER --key FILE.pub` then need no network. The key travels another way.
    """
    from release.publish.folder import export
    from release.publish.reference import Reference

    root = export(Reference.parse(reference), folder)
    click.echo(f"{folder} holds {root.digest}\nrelease verify {folder} --key FILE.pub")


@bundle.command("import")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--to", required=True, metavar="HOST/NAME:TAG", help="Where it is published; the tag never moves.")
@click.option(
    "--key", "files", multiple=True, required=True, type=click.Path(path_type=Path, dir_okay=False), help="A key that you trust."
)
@click.option("--policy", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A YAML file of rules.")
def import_(folder: Path, to: str, files: tuple[Path, ...], policy: Path | None) -> None:
    """Verify the release in a bundle's FOLDER and publish it, with all that speaks of it, in a registry over here."""
    from release.publish.folder import publish_folder
    from release.publish.reference import Reference
    from release.signing import verify_release

    target = Reference.parse(to)
    digest, _ = verify_release(str(folder), files, policy)
    click.echo(f"{target}@{publish_folder(folder, target, expected=digest)}")


@click.command()
@click.argument("first")
@click.argument("second")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
@click.pass_context
def diff(context: click.Context, first: str, second: str, as_json: bool) -> None:
    """Say what differs between two releases: pins, packages, arguments, weights, verdicts. Exit code 1 where anything does.

    Each is a reference, the folder of a layout, a bundle, dist or a pulled release, or a release.json.
    """
    from release.compare import compare
    from release.show.text import table, text

    found = compare(first, second)
    if as_json:
        click.echo(json.dumps([each._asdict() for each in found], indent=1))
    elif found:
        rows = [(each.kind, each.name, each.first or "-", each.second or "-") for each in found]
        click.echo(text(table("kind", "name", "first", "second", rows=rows)))
    if found:
        context.exit(1)
