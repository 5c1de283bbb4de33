"""The start of the command `fsmerge`, and of `python -m fsmerge_cli`.

Nothing is imported before signals are handled: the imports of the command line alone take a moment.
"""

import os
import signal
import sys


def main() -> int:
    """Run the command of this process and return its exit code."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    from fsmerge_cli.cli import main as command  # which has handlers of its own from here on

    return command()


def _stop(number: int, frame: object) -> None:
    """End the process: it has neither opened nor written anything yet."""
    try:
        if os.environ.get("RANK", "0") == "0":
            text = f"fsmerge: interrupted by {signal.Signals(number).name}. Run the same command again.\n"
            os.write(2, text.encode())
    finally:  # also where the terminal is closed
        os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
