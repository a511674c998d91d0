"""Triton operators for the released models: kernels, what proves them, and where they are listed.

The room stands alone: it imports torch, triton and the standard library, and itself by relative imports only. Importing this package, its
table and its types loads no torch; `release.kernels.operators` does.
"""
