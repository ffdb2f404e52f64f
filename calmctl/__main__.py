"""`calmctl`, and `python -m calmctl`: the command line, and signals before and after it."""

import os
import signal
import sys


def main() -> None:
    """Run the command line; a signal while it is imported is a sentence, and one while it leaves changes nothing."""
    nothing = "nothing was begun"
    try:
        from calmctl.errors import RunFailed
        from calmctl.runtime import ending_signals, interruptible
    except KeyboardInterrupt:
        sys.exit(f"error: interrupted; {nothing}")
    try:
        with interruptible(nothing):
            from calmctl.cli.main import main as run

            run()
    except RunFailed as error:
        sys.exit(f"error: {error}")
    except SystemExit as end:
        # All is done and told: Python would show programmers where in its own end it was.
        code = end.code if isinstance(end.code, int) else 0
        for number in (signal.SIGINT, *ending_signals()):
            signal.signal(number, lambda *_: os._exit(code))
        raise


if __name__ == "__main__":
    main()
