"""What `import pynca` adds to `import numpy`, each in a new interpreter."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from measure import Measure, timed


def test_import(measure: Measure, tmp_path: Path) -> None:
    def start(code: str) -> None:
        # not in the clone, where Python would find the source folder instead of the package
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)

    alone: list[float] = []
    measure(
        "import pynca",
        lambda: start("import numpy, pynca; pynca.segment"),
        prepare=lambda: alone.append(timed(lambda: start("import numpy"))),
        threads=1,
        budget=3.0,
        note=lambda seconds: f"{1e3 * (seconds - statistics.median(alone)):.0f} ms more than numpy alone",
    )
