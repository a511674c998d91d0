"""Where a release goes: record, card, layout, registry."""
