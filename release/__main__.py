"""`python -m release` is `release`."""

from release.cli import main

main()
