"""What is printed of a conversion of weights: tensors and bytes by what was done to them, the rate, and the proof."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from release.show.text import as_document, text

if TYPE_CHECKING:
    from release.convert import Converted


def converted(result: Converted, *, as_json: bool) -> str:
    """Return what a conversion did or would do."""
    summary, facts = result.summary, result.facts
    if as_json:
        return as_document({"summary": summary, "facts": facts, "verified": result.proof, "seconds": round(result.seconds, 3)})
    table = Table("tensors", "what", "count", "bytes", box=None, pad_edge=False, header_style="bold")
    for kind in ("converted", "kept", "added", "dropped"):
        for what, group in summary[kind].items():
            table.add_row(kind, escape(what), str(group["tensors"]), _size(group["bytes"]))
    lines = [
        f"{summary['recipe']}: {summary['shards']} shards, {summary['reads'] / 1e9:.2f} GB in, {summary['bytes'] / 1e9:.2f} GB out"
    ]
    if facts is not None:
        rate = (summary["reads"] + summary["bytes"]) / 1e9 / max(result.seconds, 1e-9)
        lines.append(f"done in {result.seconds:.1f} s, {rate:.2f} GB/s read and written")
        lines += [f"{name}: {count} numbers" for name, count in facts.get("counts", {}).items() if count]
    if result.proof is not None:
        lines.append(
            f"verified: {result.proof['elements']} elements of {result.proof['tensors']} tensors are what they have to be"
        )
    return text(table, "\n".join(lines))


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
