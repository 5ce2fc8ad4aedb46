"""What PyInstaller cannot see: bundled models, the report's page, what is imported by name, and highdicom's tables."""

from importlib.util import find_spec

from PyInstaller.utils.hooks import collect_data_files, collect_submodules

# Commands and training come along where a program imports them; plugins belong to other programs.
_BY_THEMSELVES = ("pynca.cli", "pynca.training", "pynca.plugins", "pynca._pyinstaller", "pynca.__main__")
# Of formats whose libraries are optional: what is installed where the program is packed.
_OPTIONAL = (
    *("PIL.Image", "PIL.TiffImagePlugin", "PIL._imaging", "pydicom", "pydicom.sr.codedict", "pydicom.valuerep"),
    *("highdicom", "highdicom.seg", "shtab"),
)

datas = collect_data_files("pynca", includes=["zoo/*.safetensors", "zoo/*.md", "web/*"])
hiddenimports = collect_submodules("pynca", filter=lambda name: not name.startswith(_BY_THEMSELVES))
hiddenimports += ["nibabel.orientations"]
hiddenimports += [name for name in _OPTIONAL if find_spec(name.partition(".")[0])]
if find_spec("highdicom"):
    datas += collect_data_files("highdicom")
