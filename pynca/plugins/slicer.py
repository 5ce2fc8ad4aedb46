"""The command-line module of 3D Slicer: describes itself to `--xml`, segments, and reports how far it is.

Slicer draws a form from the description, writes the chosen volume to a file, runs the module with the form's values as
flags, reads its progress from standard output, and loads the files that the module wrote.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from .. import zoo
from ..cli.common import FAILED, fail, whole
from ..errors import NotMadeFor
from ..files import atomic_path
from ..seal import TEXT, filled

NAME = "PyncaSegment"  # no dot in it: for Slicer, a program on Linux and macOS is a file without suffix

_DESCRIPTION = """<?xml version="1.0" encoding="utf-8"?>
<executable>
  <category>Segmentation</category>
  <title>Pynca Segment</title>
  <description>Segment a volume with a Neural Cellular Automaton (Med-NCA), on the CPU.
Research software, not a medical device.</description>
  <version>{version}</version>
  <license>MIT</license>
  <contributor>The authors of pynca</contributor>
  <parameters>
    <label>Volumes</label>
    <description>What goes in and what comes out</description>
    <image fileExtensions=".nii.gz">
      <name>input</name>
      <index>0</index>
      <description>The volume to segment</description>
      <label>Input</label>
      <channel>input</channel>
    </image>
    <image type="label" fileExtensions=".nii.gz">
      <name>mask</name>
      <index>1</index>
      <description>The mask, as a label map</description>
      <label>Mask</label>
      <channel>output</channel>
    </image>
    <image fileExtensions=".nii.gz">
      <name>probability</name>
      <longflag>probability</longflag>
      <description>The probability of the label, if it is wanted</description>
      <label>Probability</label>
      <channel>output</channel>
    </image>
  </parameters>
  <parameters>
    <label>Model</label>
    <description>What to look for, and how often</description>
    <string-enumeration>
      <name>model</name>
      <longflag>model</longflag>
      <description>A model that comes with pynca</description>
      <label>Model</label>
      <default>{default}</default>
{elements}
    </string-enumeration>
    <file fileExtensions=".safetensors">
      <name>modelfile</name>
      <longflag>modelfile</longflag>
      <description>A model file, which takes the place of the model above</description>
      <label>Model file</label>
      <channel>input</channel>
    </file>
    <string-enumeration>
      <name>force</name>
      <longflag>force</longflag>
      <description>Segment a volume that the model was not made for, too</description>
      <label>Any volume</label>
      <default>no</default>
      <element>no</element>
      <element>yes</element>
    </string-enumeration>
    <integer>
      <name>samples</name>
      <longflag>samples</longflag>
      <description>Runs to average; with several, the result says how much they disagree (NQM)</description>
      <label>Samples</label>
      <default>1</default>
      <constraints>
        <minimum>1</minimum>
        <maximum>4096</maximum>
        <step>1</step>
      </constraints>
    </integer>
  </parameters>
  <parameters advanced="true">
    <label>Computing</label>
    <description>What changes no result, and the seed</description>
    <integer>
      <name>threads</name>
      <longflag>threads</longflag>
      <description>Threads; 0 takes all CPUs that there are</description>
      <label>Threads</label>
      <default>0</default>
      <constraints>
        <minimum>0</minimum>
        <maximum>1024</maximum>
        <step>1</step>
      </constraints>
    </integer>
    <integer>
      <name>seed</name>
      <longflag>seed</longflag>
      <description>Seed of the automaton; the same seed gives the same mask</description>
      <label>Seed</label>
      <default>0</default>
      <constraints>
        <minimum>0</minimum>
        <maximum>2147483647</maximum>
        <step>1</step>
      </constraints>
    </integer>
  </parameters>
  <parameters>
    <label>Result</label>
    <description>What was found</description>
    <string>
      <name>found</name>
      <index>1000</index>
      <description>Volume of the mask, and how much the runs disagree</description>
      <label>Found</label>
      <default>nothing yet</default>
      <channel>output</channel>
    </string>
  </parameters>
</executable>
<!-- {seal} -->
"""
_SHELL = """#!/bin/sh
# {seal}
# Slicer runs its modules with its own libraries and its own Python's settings, which another Python must not see.
unset PYTHONHOME PYTHONPATH PYTHONNOUSERSITE LD_LIBRARY_PATH DYLD_LIBRARY_PATH DYLD_FRAMEWORK_PATH
exec {python} -m pynca.plugins.slicer "$@"
"""
_BATCH = """@echo off\r
rem {seal}\r
set PYTHONHOME=\r
set PYTHONPATH=\r
set PYTHONNOUSERSITE=\r
{python} -m pynca.plugins.slicer %*\r
"""


def describe() -> str:
    """Return the description of the module, in the XML of Slicer's execution model."""
    from .. import __version__

    elements = "\n".join(f"      <element>{escape(name)}</element>" for name in zoo.names())
    text = _DESCRIPTION.format(version=escape(__version__), default=zoo.DEFAULT, elements=elements, seal=TEXT)
    return filled(text.encode()).decode()


def files(folder: Path) -> tuple[Path, Path]:
    """Return what the module consists of in a folder: the program and its description."""
    return folder / (f"{NAME}.bat" if os.name == "nt" else NAME), folder / f"{NAME}.xml"


def install(folder: Path, *, overwrite: bool = False) -> Path:
    """Write the module to a folder, which is then named in Slicer under "Additional module paths".

    It starts this Python, wherever Slicer is; the description beside it spares Slicer a start of it.

    Parameters
    ----------
    folder : path
    overwrite : bool
        Replace files that pynca did not write, or that were changed since. Default False.

    Returns
    -------
    path
        The module.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program, description = files(folder)
    if os.name == "nt":
        text = _BATCH.format(python=f'"{sys.executable}"', seal=TEXT)
    else:
        import shlex

        text = _SHELL.format(python=shlex.quote(sys.executable), seal=TEXT)
    with atomic_path(description, overwrite=overwrite) as path:
        path.write_text(describe(), encoding="utf-8", newline="")
    with atomic_path(program, overwrite=overwrite) as path:
        path.write_text(text, encoding="utf-8", newline="")
    program.chmod(0o755)
    return program


def main(argv: Sequence[str] | None = None) -> int:
    """Do what Slicer asks for, and return the exit code."""
    parser = argparse.ArgumentParser(prog=NAME, description="The command-line module of 3D Slicer.", allow_abbrev=False)
    parser.add_argument("--xml", action="store_true", help="print the description of the module")
    parser.add_argument("--returnparameterfile", type=Path, metavar="FILE", help="where to write what was found")
    parser.add_argument("--model", default=zoo.DEFAULT, help="a bundled model")
    parser.add_argument("--modelfile", type=Path, metavar="FILE", help="a model file instead")
    parser.add_argument("--force", choices=("no", "yes"), default="no", help="what the model was not made for, too")
    parser.add_argument("--samples", type=whole, default=1, metavar="N", help="runs to average")
    parser.add_argument("--threads", type=whole, default=0, metavar="N", help="threads; 0: all usable CPUs")
    parser.add_argument("--seed", type=whole, default=0, metavar="S", help="seed of the automaton")
    parser.add_argument("--probability", type=Path, metavar="FILE", help="where to write the probability")
    parser.add_argument("files", nargs="*", type=Path, metavar="IN OUT", help="the volume, and the mask to write")
    arguments = parser.parse_args(argv)
    if arguments.xml:
        print(describe(), end="")
        return 0
    # Slicer may append the last result, which has the last index; without that it would refuse to run
    if len(arguments.files) not in (2, 3):
        parser.error(f"{len(arguments.files)} files are named; there must be a volume and a mask")
    try:
        _segment(arguments)
    except NotMadeFor as error:
        return fail(f"{error}; 'Any volume' (--force yes) goes on anyway", FAILED, arguments.files[0])
    except (ValueError, TypeError, OSError, MemoryError) as error:
        return fail(error, FAILED, arguments.files[0])
    return 0


def _segment(arguments: argparse.Namespace) -> None:
    from ..model import load_model
    from ..segmentation import predict
    from . import summary

    source, mask = arguments.files[:2]
    _say("filter-name", "pynca")
    model = load_model(arguments.modelfile or arguments.model)
    result = predict(
        source,
        model,
        samples=arguments.samples,
        seed=arguments.seed,
        threads=arguments.threads or None,
        strict=arguments.force == "no",
        progress=lambda share: _say("filter-progress", f"{share:.4f}"),
    )
    if arguments.probability is not None:
        result.save_probability(arguments.probability, overwrite=True)  # Slicer names files of its own
    result.save(mask, overwrite=True)
    if arguments.returnparameterfile is not None:
        assert result.volume is not None  # it was read from a file
        text = summary(result, model, result.volume.voxel_volume)
        arguments.returnparameterfile.write_text(f"found = {text}\n", encoding="utf-8")


def _say(tag: str, text: str) -> None:
    print(f"<{tag}>{text}</{tag}>", flush=True)


if __name__ == "__main__":
    sys.exit(main())
