"""`python -m pynca.cli`, the same as `pynca`."""

import sys

from . import main

sys.exit(main())
