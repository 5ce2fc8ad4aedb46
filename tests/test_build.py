"""What was built and installed: symbols, version, types, docstrings, and that nothing needs torch."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import pynca
from pynca import _core

CLONE = Path(__file__).resolve().parents[1]
PACKAGE = Path(pynca.__file__).parent
SOURCE = CLONE / "csrc" / "kernels" / "kernels.cpp"
X86 = platform.machine().lower() in ("x86_64", "amd64")
ARM64 = platform.machine().lower() in ("aarch64", "arm64")

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into ELF files")
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm")


def symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """(kind, name) of each symbol that nm lists."""
    run = subprocess.run(["nm", *options, path], check=True, capture_output=True, text=True)
    return [(kind, name) for *_, kind, name in (line.split() for line in run.stdout.splitlines() if line.strip())]


# --- the extension ------------------------------------------------------------------------------------------


@linux
@needs_nm
def test_the_extension_exports_its_entry_and_nothing_else() -> None:
    """Whatever else it exported could be taken for another library's, or be replaced by it."""
    exported = symbols(Path(_core.__file__), "-D", "--defined-only")
    assert [name for _, name in exported] == ["PyInit__core"]


@linux
def test_the_extension_needs_no_library_beyond_the_compilers(tmp_path: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("there is no readelf")
    run = subprocess.run(["readelf", "-d", _core.__file__], check=True, capture_output=True, text=True)
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", run.stdout)
    allowed = r"lib(c|m|dl|gcc_s|stdc\+\+|c\+\+|c\+\+abi|pthread|asan|ubsan|tsan)\.so\.\d+|ld-linux.*\.so\.\d+"
    assert [name for name in needed if not re.fullmatch(allowed, name)] == []
    assert "RPATH" not in run.stdout
    assert "RUNPATH" not in run.stdout


# --- one kernel source, several instruction sets ----------------------------------------------------------------


def instruction_sets() -> dict[str, list[str]]:
    """The flags of each instruction set of this architecture, read from CMakeLists.txt."""
    if not SOURCE.is_file():
        return {}
    wanted = {"avx2", "avx512"} if X86 else {"neon", "neon_half"} if ARM64 else set()
    text = (CLONE / "CMakeLists.txt").read_text()
    calls = re.findall(r"^\s*add_kernels\((\w+)([^)]*)\)", text, flags=re.MULTILINE)
    return {name: flags.split() for name, flags in calls if name in {"baseline", *wanted}}


def compiled(isa: str, flags: list[str], folder: Path) -> list[Path]:
    """Object files of an instruction set: those of the build that PYNCA_BUILD_DIR names, else new ones."""
    if build := os.environ.get("PYNCA_BUILD_DIR"):
        objects = sorted(Path(build).rglob(f"nca_{isa}.dir/**/*.o"))
        if not objects:
            pytest.skip(f"PYNCA_BUILD_DIR={build} holds no object file of {isa}")
        return objects
    compilers = [c for c in (os.environ.get("CXX"), "g++", "clang++", "c++") if c and shutil.which(c)]
    if not compilers:
        pytest.skip("there is no C++ compiler, and PYNCA_BUILD_DIR is not set")
    path = folder / f"{isa}.o"
    subprocess.run(
        [
            *[compilers[0], "-std=c++20", "-O3", "-DNDEBUG", "-fPIC", "-ffp-contract=off", "-fno-fast-math"],
            *["-fvisibility=hidden", "-fvisibility-inlines-hidden", "-fno-exceptions", "-fno-rtti", *flags],
            *[f"-DNCA_ISA={isa}", f"-DNCA_ISA_{isa.upper()}", "-I", str(CLONE / "csrc")],
            *["-c", str(SOURCE), "-o", str(path)],
        ],
        check=True,
    )
    return [path]


@linux
@needs_nm
@pytest.mark.skipif(not SOURCE.is_file(), reason="runs in a clone")
def test_every_instruction_set_of_this_build_is_looked_at() -> None:
    assert {*_core.available_isas(), *_core.half_isas()} <= set(instruction_sets())


@linux
@needs_nm
@pytest.mark.parametrize("isa", instruction_sets())
def test_kernels_share_nothing_between_instruction_sets(isa: str, tmp_path: Path) -> None:
    """No weak symbol, which the linker would keep once for all of them; no call but to fill and copy memory."""
    for path in compiled(isa, instruction_sets()[isa], tmp_path):
        found = symbols(path)
        assert [name for kind, name in found if kind in "WwVvu"] == []
        undefined = {name for kind, name in found if kind == "U"}
        assert undefined <= {"memcpy", "memset", "memmove", "_GLOBAL_OFFSET_TABLE_"}
        exported = [name for kind, name in found if kind in "TDBRG"]
        assert exported == [f"_ZN3nca{len(isa)}{isa}7kernelsE"]


@pytest.mark.skipif(not SOURCE.is_file(), reason="runs in a clone")
def test_kernel_files_include_nothing_of_the_standard_library() -> None:
    files, seen = [SOURCE, *SOURCE.parent.glob("*.hpp")], set()
    while files:
        path = files.pop()
        if path in seen:
            continue
        seen.add(path)
        text = re.sub(r"//.*", "", path.read_text())
        assert "std::" not in text, path
        files += [(path.parent / name).resolve() for name in re.findall(r'#\s*include\s*"(.*?)"', text)]
        for name in re.findall(r"#\s*include\s*<(.*?)>", text):
            assert re.fullmatch(r"cstdint|arm_neon\.h|[a-z]*intrin\.h", name), path
    assert len(seen) >= 3


# --- the package ----------------------------------------------------------------------------------------------


def test_one_version() -> None:
    assert pynca.__version__ == metadata.version("pynca") == _core.build_info()["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z0-9.+]*)", pynca.__version__)


def test_requirements_are_numpy_and_nibabel() -> None:
    required = [r for r in metadata.requires("pynca") or [] if "extra ==" not in r]
    assert sorted(re.split(r"[^\w-]", r)[0] for r in required) == ["nibabel", "numpy"]


def test_what_is_installed() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "_core.pyi").is_file()
    assert not list(PACKAGE.rglob("*.pyx"))
    assert not list(PACKAGE.rglob("*.cpp"))
    names = {entry.name for entry in metadata.entry_points(group="console_scripts") if entry.module == "pynca.__main__"}
    assert names == {"pynca"}


def test_the_stub_names_what_the_extension_has() -> None:
    stub = ast.parse((PACKAGE / "_core.pyi").read_text())
    described = {n.name for n in stub.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    described |= {n.target.id for n in stub.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    there = {name for name in dir(_core) if not name.startswith("_")}
    assert described == there


def test_no_module_imports_torch_or_anything_that_is_not_required() -> None:
    # matplotlib is the extra `plot`, imported where it is used
    allowed = {"pynca", "numpy", "nibabel", "matplotlib", *sys.stdlib_module_names}
    # what another program loads finds that program there
    guests = {"plugins/napari.py": {"napari", "magicgui"}, "_pyinstaller/hook-pynca.py": {"PyInstaller"}}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            roots = {name.partition(".")[0] for name in names}
            mine = guests.get(path.relative_to(PACKAGE).as_posix(), set())
            assert roots <= allowed | mine, path
            assert not roots & {"pickle", "shelve", "marshal"}, f"{path} could run code of a file"


def test_the_clones_folder_says_what_is_missing() -> None:
    """From the clone's root Python finds the source folder, which holds no compiled core, before the package."""
    if not (CLONE / "pynca" / "__init__.py").is_file() or PACKAGE == CLONE / "pynca":
        pytest.skip("there is no clone beside the installed package")
    run = subprocess.run([sys.executable, "-c", "import pynca; pynca.Rule"], cwd=CLONE, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].startswith("ImportError: ")
    assert "without its compiled core: run `pip install .` in the clone" in run.stderr


# --- documentation --------------------------------------------------------------------------------------------

PUBLIC = [name for name in pynca.__all__ if name != "__version__"]


def documented() -> list[tuple[str, Any]]:
    """Every public function, class, method and property."""
    found: list[tuple[str, Any]] = []
    for name in PUBLIC:
        thing = getattr(pynca, name)
        found.append((name, thing))
        if inspect.isclass(thing):
            for member, value in vars(thing).items():
                if member.startswith("_"):
                    continue
                if isinstance(value, (classmethod, staticmethod)):
                    value = value.__func__
                if inspect.isfunction(value) or isinstance(value, property):
                    found.append((f"{name}.{member}", value))
    return found


def test_public_names() -> None:
    assert sorted(pynca.__all__) == pynca.__all__
    for name in ("segment", "predict", "load_model", "import_checkpoint", "Model", "Rule", "fire_mask", "show_config"):
        assert name in pynca.__all__
    assert set(pynca.__all__) <= set(dir(pynca))
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        pynca.no_such_name  # noqa: B018


@pytest.mark.parametrize(("name", "thing"), documented(), ids=lambda x: x if isinstance(x, str) else "")
def test_docstrings(name: str, thing: Any) -> None:
    text = inspect.getdoc(thing)
    assert text, f"{name} has no docstring"
    assert text.splitlines()[0].rstrip().endswith((".", ","))
    if "." in name or isinstance(thing, property):
        return  # a method's docstring may be a line that points elsewhere
    if dataclasses.is_dataclass(thing):
        section = text.partition("Attributes\n----------" if name == "Segmentation" else "Parameters\n----------")[2]
        for field in dataclasses.fields(thing):
            if field.name != "volume":
                assert re.search(rf"\b{field.name}\b", section), f"{name} does not describe {field.name}"
        return
    signature = inspect.signature(thing)
    names = [p for p in signature.parameters if p != "self"]
    if name == "segment":
        assert "`predict` describes the arguments" in text
    elif names:
        section = text.partition("Parameters\n----------")[2]
        for parameter in names:
            assert re.search(rf"\b{parameter}\b", section), f"{name} does not describe {parameter}"
    if inspect.isfunction(thing) and signature.return_annotation not in (None, "None"):
        assert "Returns\n-------" in text, f"{name} does not describe what it returns"
