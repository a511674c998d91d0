"""Vendor patch sets: read, checked, applied."""
