"""`python -m calmctl`."""

from calmctl.cli import main

main()
