"""The commands about model hubs: send a release there."""

from __future__ import annotations

import click

from release.cli.options import house_of


@click.group()
def hub() -> None:
    """Model hubs: Hugging Face and ModelScope."""


@hub.command()
@click.argument("what", metavar="CELL|FOLDER")
@click.option(
    "--to", required=True, metavar="hf:ORG/NAME", help="Where: hf: or ms:, and a repository; ORG/ alone takes the release's name."
)
@click.option("--weights", is_flag=True, help="The weights too; without it, card, record and evidence alone.")
@click.option("--public", is_flag=True, help="Let everybody see it, once all of it is there; for a validated release alone.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@click.pass_context
def push(context: click.Context, what: str, to: str, weights: bool, public: bool, dry_run: bool) -> None:
    """Send a release to a hub: one commit and one tag, private unless --public, nothing twice.

    The token is taken from $HF_TOKEN or $MODELSCOPE_API_TOKEN, the hub's address from $HF_ENDPOINT or $MODELSCOPE_ENDPOINT.

    \b
    release hub push cpu/tiny-qwq@bf16 --to hf:my-team/ --dry-run
    """
    from release.shipping import push as send

    for line in send(house_of(context), what, to, weights=weights, public=public, dry_run=dry_run):
        click.echo(line)
