"""A row of `methods`: a model trained as it is (`NAME`) or with ELA (`NAME+ela:skip=0.5`)."""

import re
from dataclasses import dataclass

import torch

from ela_probe.errors import ElaProbeError, OptionError
from ela_probe.models.registry import FAMILIES, family_of
from ela_probe.training.ela.config import ELAConfig
from ela_probe.training.ela.gradual_pruning import GradualPruning
from ela_probe.training.recipes import Recipe

WITH_ELA = "+ela"
MRLA_B, DIA = "mrla_b_", "dia_"


@dataclass(frozen=True)
class Method:
    """A model and its own settings of ELA; None: it trains without ELA."""

    model: str
    own: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Method":
        """From `NAME`, `NAME+ela` or `NAME+ela:skip=0.5,action=drop`.

        Raises:
            OptionError: it has another form, the model is no ResNet of the zoo, or the settings
                don't fit.
        """
        model, plus, rest = text.partition("+")
        backbone_of(model)
        if not plus:
            return cls(model)
        name, colon, settings = rest.partition(":")
        if name != WITH_ELA[1:] or bool(colon) != bool(settings):
            raise OptionError(
                f"got method {text!r}, expected NAME, NAME{WITH_ELA} or "
                f"NAME{WITH_ELA}:skip=0.5,action=drop"
            )
        if not colon:
            return cls(model, "")
        given = ELAConfig.parse(settings)
        own = given.model_dump(include=given.model_fields_set)
        return cls(model, ",".join(f"{name}={value}" for name, value in own.items()))

    def __str__(self) -> str:
        """As the option `--model` takes it."""
        if self.own is None:
            return self.model
        return f"{self.model}{WITH_ELA}{self.own and ':'}{self.own}"

    @property
    def folder(self) -> str:
        """The same as a safe file name."""
        return re.sub(r"[^\w.+-]", "-", str(self))

    @property
    def label(self) -> str:
        """The same for a table: `mrla_b_resnet20 + ELA (skip 0.5, action drop)`."""
        if self.own is None:
            return self.model
        settings = self.own.replace("=", " ").replace(",", ", ")
        return f"{self.model} + ELA{settings and f' ({settings})'}"

    def settings(self, recipe: Recipe, common: str | None, *, epochs: int) -> ELAConfig | None:
        """Settings of ELA, None without: its own win over `common`, and `common` over the recipe.

        Raises:
            OptionError: they don't fit each other, the epochs or the model.
        """
        shared = recipe.ela_config(common)
        if self.own is None:
            return None
        try:
            config = recipe.model_copy(update={"ela": shared}).ela_config(self.own or None)
            config = config or ELAConfig()
            config.schedule(epochs)
            with torch.device("meta"):
                GradualPruning(config, recipe.model_spec(self.model).build())
        except ElaProbeError as error:
            raise OptionError(f"method {self}: {error}") from error
        return config


def all_methods(recipe: Recipe) -> list[str]:
    """Every attention of the zoo on the recipe's backbone; MRLA-B also with ELA."""
    backbone = backbone_of(recipe.model_spec().name)
    depth = re.sub(r"\D", "", backbone)
    names = [f"{family}{depth}" for family in FAMILIES if FAMILIES[family].reads == "images"]
    return [name for name in names if backbone_of(name) == backbone] + [
        f"{MRLA_B}{backbone}{WITH_ELA}"
    ]


def backbone_of(model: str) -> str:
    """`resnet20` of `mrla_b_resnet20`. Raises OptionError: it is no ResNet of the zoo."""
    match = re.fullmatch(r"(?:.+?_)??((?:imagenet_)?resnet\d+)", model)
    if match is None or family_of(model) is None:
        raise OptionError(f"got model {model!r}, expected a ResNet of `ela-probe models`")
    return match[1]
