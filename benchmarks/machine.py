"""What machine this is: the name that its results carry."""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np

import pynca
from pynca import _core
from pynca.config import thread_count

# "CPU part" of /proc/cpuinfo where "CPU implementer" is 0x41, Arm
_ARM_PARTS = {
    0xD03: "Cortex-A53",
    0xD04: "Cortex-A35",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75",
    0xD0B: "Cortex-A76",
    0xD0D: "Cortex-A77",
    0xD41: "Cortex-A78",
    0xD46: "Cortex-A510",
    0xD80: "Cortex-A520",
    0xD47: "Cortex-A710",
    0xD4D: "Cortex-A715",
    0xD81: "Cortex-A720",
    0xD44: "Cortex-X1",
    0xD48: "Cortex-X2",
    0xD4E: "Cortex-X3",
    0xD82: "Cortex-X4",
    0xD0C: "Neoverse-N1",
    0xD49: "Neoverse-N2",
    0xD40: "Neoverse-V1",
    0xD4F: "Neoverse-V2",
}


def describe() -> dict[str, Any]:
    """Everything about this machine that explains its numbers."""
    build = _core.build_info()
    return {
        "cpu": cpu_name(),
        "isa": _core.isa(),
        "cores": thread_count(),
        "compiler": build["compiler"],
        "target": build["target"],
        "system": f"{platform.system()} {platform.machine()}",
        "pynca": pynca.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        # Whoever else used the machine before the first case: a figure well above 0 spoils what follows
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo"), device_tree: Path = Path("/proc/device-tree/model")) -> str:
    """The CPU as Linux names it; on ARM the board with its cores; elsewhere what Python knows."""
    fields = _fields(cpuinfo)
    if fields.get("model name"):
        return fields["model name"][0]
    implementers = {int(text, 16) for text in fields.get("CPU implementer", [])}
    parts = [int(text, 16) for text in fields.get("CPU part", [])] if implementers == {0x41} else []
    cores = " + ".join(_ARM_PARTS.get(part, f"Arm part {part:#x}") for part in sorted(set(parts)))
    try:
        board = device_tree.read_text().strip("\0\n ")
    except (OSError, UnicodeDecodeError):
        board = ""
    if board and cores:
        return f"{board} ({cores})"
    return board or cores or platform.processor() or platform.machine() or "unknown CPU"


def file_name(cpu: str, isa: str) -> str:
    """``Intel(R) Xeon(R) Processor @ 2.60GHz`` with AVX-512 to ``intel-xeon-processor_avx512.json``."""
    text = re.sub(r"\((R|TM|C)\)|@.*|\bCPU\b", " ", cpu, flags=re.IGNORECASE)
    words = re.findall(r"[a-z0-9]+", text.lower())
    return f"{'-'.join(words) or 'unknown'}_{isa}.json"


def _fields(cpuinfo: Path) -> dict[str, list[str]]:
    """All values of each field, over all CPUs."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    found: dict[str, list[str]] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and value.strip():
            found.setdefault(name.strip(), []).append(value.strip())
    return found
