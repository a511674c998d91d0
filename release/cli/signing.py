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
    """Say whether a published release can be let in: signed by one of the keys, what its record says, and what the policy wants.

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
