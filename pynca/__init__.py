"""Neural Cellular Automata segmentation on any CPU: `segment` an image with a `Model` that `load_model` reads."""

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if find_spec("._core", __name__) is None:
    if not os.path.isdir(__path__[0]):
        raise ImportError(
            f"{__path__[0]} is in an archive, from which Python loads no compiled core: unpack or install it"
        )
    raise ImportError(
        f"{__path__[0]} holds pynca's source without its compiled core: run `pip install .` in the clone, "
        "and start Python in another folder (pytest may run in the clone)"
    )

if TYPE_CHECKING:
    from .checkpoints import import_checkpoint
    from .config import show_config
    from .model import Card, Level, Model, load_model
    from .preprocessing import Preparation
    from .rule import Rule, fire_mask
    from .segmentation import Segmentation, predict, segment

    __version__: str

__all__ = [
    "Card",
    "Level",
    "Model",
    "Preparation",
    "Rule",
    "Segmentation",
    "__version__",
    "fire_mask",
    "import_checkpoint",
    "load_model",
    "predict",
    "segment",
    "show_config",
]

_PLACES = {
    "Card": "model",
    "Level": "model",
    "Model": "model",
    "Preparation": "preprocessing",
    "Rule": "rule",
    "Segmentation": "segmentation",
    "fire_mask": "rule",
    "import_checkpoint": "checkpoints",
    "load_model": "model",
    "predict": "segmentation",
    "segment": "segmentation",
    "show_config": "config",
}


def __getattr__(name: str) -> object:
    """Load what is asked for when it is first asked for, so that `pynca --help` need not wait for numpy."""
    if name == "__version__":
        value: object = import_module("._core", __name__).build_info()["version"]
    elif name in _PLACES:
        value = getattr(import_module(f".{_PLACES[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
