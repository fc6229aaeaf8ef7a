"""Where the command starts, `python -m secondpass` too: Ctrl-C ends it in silence from here on, imports included."""

import os
import signal


def main() -> None:
    """The command `secondpass`."""
    is_heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, as under nohup
    if is_heeded:
        signal.signal(signal.SIGINT, lambda signum, frame: os._exit(128 + signum))  # nothing has begun yet
    from secondpass.cli import main as run_command

    run_command(is_heeded)


if __name__ == "__main__":
    main()
