"""Neural Cellular Automata segmentation on any CPU: `segment` an image with a `Model` that `load_model` reads."""

try:
    from . import _core as _core_module
except ImportError as error:
    if "_core" not in str(error):
        raise
    from pathlib import Path

    raise ImportError(
        f"{Path(__file__).parent} holds pynca's source without its compiled core: run `pip install .` in the clone, "
        "and start Python in another folder (pytest may run in the clone)"
    ) from None
from .checkpoints import import_checkpoint
from .config import show_config
from .model import Card, Level, Model, load_model
from .preprocessing import Preparation
from .rule import Rule, fire_mask
from .segmentation import Segmentation, predict, segment

__version__ = _core_module.build_info()["version"]

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
