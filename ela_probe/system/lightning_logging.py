"""Lightning's messages about itself, silenced: users want to hear of their run only."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's banners, tips and hints. Errors are still raised."""
    loggers = [logging.getLogger(n) for n in ("pytorch_lightning", "lightning_fabric")]
    loggers += [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
        and logger.level
        and name.startswith(("pytorch_lightning.", "lightning_fabric."))
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for name in ("pytorch_lightning", "lightning_fabric"):
                warnings.filterwarnings("ignore", module=rf"{name}\.")
            # DDP warns of depthwise kernels, whose gradients are channels-last as the images are
            warnings.filterwarnings("ignore", message="Grad strides do not match")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
