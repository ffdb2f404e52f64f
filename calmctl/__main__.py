"""`python -m calmctl`."""

from calmctl.cli.main import main

main()
