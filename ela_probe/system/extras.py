"""Packages that only some features need."""

from typing import Any

from ela_probe.errors import OptionError


def transformers() -> Any:
    """The package transformers. Raises OptionError where it is missing, with what to type."""
    try:
        import transformers
    except ImportError as error:
        raise OptionError(
            f"models of transformers need that package ({error}); install it with "
            "pip install 'ela-probe[hf]', or pip install transformers (Python 3.11 or later)"
        ) from error
    return transformers


def accelerate() -> Any:
    """The package accelerate. Raises OptionError where it is missing, with what to type."""
    try:
        import accelerate
    except ImportError as error:
        raise OptionError(
            f"a model that is spread over devices needs the package accelerate ({error}); install "
            "it with pip install 'ela-probe[hf]', or pip install accelerate"
        ) from error
    return accelerate


def faster_coco_eval() -> Any:
    """The package faster_coco_eval. Raises OptionError where it is missing, with what to type."""
    try:
        import faster_coco_eval
    except ImportError as error:
        raise OptionError(
            f"detection needs the package faster-coco-eval ({error}); install it with "
            "pip install 'ela-probe[detection]'"
        ) from error
    return faster_coco_eval
