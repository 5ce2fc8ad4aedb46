"""``python -m pynca`` is the `pynca` command."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command and return its exit code, also where it is interrupted while it loads."""
    try:
        from .cli import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("pynca: interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
