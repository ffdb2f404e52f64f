"""The command line: one module a subcommand; parse, call the library, render."""


def main() -> None:
    """Entry point of the `calmctl` script."""
    from calmctl.cli.main import main as run

    run()
