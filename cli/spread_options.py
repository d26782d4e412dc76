"""Options of the verbs that only run forward passes, for models that are larger than the memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ela_probe.spreading import Spread


@dataclass(frozen=True)
class SpreadOptions:
    """How the weights of hf:DIR are spread over devices, memory and disk."""

    device_map: Annotated[
        Literal["auto", "balanced", "sequential"] | None,
        typer.Option(
            help="Spread the weights of hf:DIR over GPUs, memory and disk, as accelerate does, for "
            "a model that one device can't hold. Default: all on --device.",
            show_default=False,
        ),
    ] = None
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE=SIZE,...",
            help="With --device-map: most bytes of weights on each GPU (by number) and in memory "
            "(cpu), e.g. 0=20GiB,cpu=60GiB. The rest goes to disk. Default: what is free.",
            show_default=False,
        ),
    ] = None

    def spread(self) -> "Spread | None":
        """What the options say; None: the model is not spread. Raises OptionError."""
        from ela_probe.errors import OptionError
        from ela_probe.spreading import Spread, parse_memory

        if self.device_map is None:
            if self.max_memory is not None:
                raise OptionError("got --max-memory without --device-map; add --device-map auto")
            return None
        return Spread(self.device_map, parse_memory(self.max_memory) if self.max_memory else {})
