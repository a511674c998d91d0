"""What is printed of restored trees, of patch sets that were made, and of where one applies."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from release.show.text import as_document, bare, text
from release.types import JSON

if TYPE_CHECKING:
    from release.patches.doctor import Diagnosis, Finding
    from release.patches.make import Made

COLOURS = {"clean": "green", "whitespace": "yellow", "fuzz": "yellow", "fails": "red"}
PLATFORMS = ("linux/amd64", "linux/arm64")
"""What hosts of chips are; a chip's file says which of them."""
SHOWN = 12
"""Paths or hunks that are shown of one thing; --json has them all."""


def restored(found: list[JSON], *, as_json: bool) -> str:
    """Return what each source was restored to: base, patches with their digests, tree id, and where it lies."""
    if as_json:
        return as_document(found)
    parts: list[object] = []
    for source in found:
        table = bare()
        repository = "" if source["repository"] == source["name"] else f"  {escape(source['repository'])}"
        table.add_row("source", f"[bold]{escape(source['name'])}[/]{repository}")
        table.add_row("base", f"{source['base']}  tree {source['base-tree']}")
        for patch in source["patches"]:
            how = (
                ""
                if patch["how"] == "exact"
                else f"  [yellow]{escape(patch['how'])}: this is not the tree that the vendor had[/]"
            )
            secret = "  encrypted" if patch["encrypted"] else ""
            table.add_row("patch", f"{escape(patch['path'])}  {patch['sha256']}{secret}{how}")
        for path, commit in source["submodules"].items():
            table.add_row("submodule", f"{escape(path)}  {commit}")
        table.add_row("tree", f"[bold]{source['tree']}[/]  {len(source['changed'])} files differ from the base")
        table.add_row("lies in", escape(source["folder"]))
        parts.append(table)
    return text(*parts) if parts else "no source of this cell is a repository"


def imported(facts: JSON) -> str:
    """Return what a base image is that was imported: layers, tags, and what it runs on, with a word where no chip's host has that."""
    platform = f"{facts['os']}/{facts['architecture']}"
    warning = (
        ""
        if platform in PLATFORMS
        else f"\nno chip has a host of {platform}: with a base like this, nothing that is built will run"
    )
    return (
        f"{len(facts['diff-ids'])} layers for {platform}, saved as {', '.join(facts['tags']) or 'no tag'}{warning}\n"
        "write into the cell (or its chip):"
    )


def made(result: Made, *, as_json: bool) -> str:
    """Return what a patch set holds and gives."""
    if as_json:
        return as_document({**asdict(result), "folder": str(result.folder)})
    table = bare()
    table.add_row("base", f"{result.base or 'a folder'}  tree {result.base_tree}")
    table.add_row("tree", f"{result.tree}  {len(result.changed)} files differ")
    for patch in result.patches:
        table.add_row("patch", f"{patch.file}  {patch.sha256}{'  encrypted' if patch.plaintext_sha256 else ''}")
    table.add_row("set", f"{result.folder}; it was applied to the base and gave this very tree")
    if result.left_out:
        table.add_row("left out", escape(", ".join(result.left_out[:SHOWN])) + ": changed in the checkout and not committed")
    return text(table)


def diagnosis(found: Diagnosis, *, as_json: bool) -> str:
    """Return where a set applies, a line a commit with the hunks that fail, and the newest commit of a branch if asked for."""
    if as_json:
        return as_document(asdict(found))
    parts: list[object] = []
    if found.findings:
        table = Table("commit", "date", "subject", "fits", "what fails", box=None, pad_edge=False, header_style="bold")
        for finding in found.findings:
            table.add_row(*_row(finding))
        parts.append(table)
    if newest := found.newest:
        table = bare()
        good, bad = newest.finding, newest.broken_by
        table.add_row(
            "newest", f"{good.commit.id[:12]} {good.commit.date} {escape(good.commit.subject)}" if good else "none was found"
        )
        if bad:
            table.add_row("broken by", f"{bad.commit.id[:12]} {bad.commit.date} {escape(bad.commit.subject)}")
            table.add_row("", _row(bad)[-1])
        table.add_row(
            "looked at", f"{newest.commits} commits in {newest.states} states of the touched files, {newest.tried} of them tried"
        )
        if newest.note:
            table.add_row("note", escape(newest.note))
        parts.append(table)
    return text(*parts)


def _row(finding: Finding) -> tuple[str, str, str, str, str]:
    failures = [
        f"{step.patch}: {failure.path}" + (f", hunk {failure.hunk} of {failure.hunks} ({failure.header})" if failure.hunk else "")
        for step in finding.steps
        for failure in step.failures
    ]
    shown = "; ".join(failures[:SHOWN]) + (f"; and {len(failures) - SHOWN} more" if len(failures) > SHOWN else "")
    commit = finding.commit
    fits = f"[{COLOURS[finding.fit]}]{finding.fit}[/]"
    return commit.id[:12], commit.date, escape(commit.subject[:50]), fits, escape(shown)
