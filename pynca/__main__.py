"""``python -m pynca`` is the `pynca` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
