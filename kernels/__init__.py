"""Triton operators for the released models."""
