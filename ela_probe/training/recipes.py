"""Recipes: training runs as YAML files of model, data and schedule, read and checked.

The built-in ones, in `ela_probe/recipes/`, are named without a path (`cifar10-kcla`).
"""

import importlib.resources
from collections import Counter
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field

from ela_probe.data.source_names import Task
from ela_probe.data.spec import Augmentation
from ela_probe.errors import OptionError
from ela_probe.system.messages import did_you_mean, shortened
from ela_probe.system.reading import (
    LARGEST_BY_HAND,
    read_document,
    refuse_deep,
    refuse_surrogates,
    refusing,
)
from ela_probe.system.validation import Name, Strict
from ela_probe.training.config import TrainConfig
from ela_probe.training.ela.config import ELAConfig

if TYPE_CHECKING:
    from ela_probe.data.opening import Data
    from ela_probe.models.registry import ModelSpec

SUFFIXES = (".yaml", ".yml")


class RecipeData(Strict):
    """The data of a recipe: a source and options, as in `open_data`."""

    source: str | None = Field(None, description="as --data; None: the user names it")
    limit: int | None = Field(None, ge=1, description="training samples, validation included")
    val_fraction: float | None = Field(None, ge=0, lt=1, description="share for validation")
    image_size: int | None = Field(None, ge=1, description="height and width in pixels")
    augment: Augmentation | Literal["flip"] | None = None
    context: int | None = Field(None, ge=1, description="tokens per sequence, of text")


class Recipe(Strict):
    """A training run. Settings that a recipe leaves out have the defaults of `ela-probe train`.

    model_args: arguments of any model. family_args: arguments of the models of a family only, by
    its name (`dla_b_resnet`). ela: settings of ELA, may be empty; without it nothing is skipped.
    """

    description: str = ""
    model: Name | None = None
    model_args: dict[str, Any] = Field(default_factory=dict)
    family_args: dict[str, dict[str, Any]] = Field(default_factory=dict)
    data: RecipeData = RecipeData()
    train: TrainConfig = TrainConfig()
    ela: ELAConfig | None = None
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="seeds of the runs of a table")

    def model_spec(
        self, model: str | None = None, args: Mapping[str, Any] | None = None
    ) -> "ModelSpec":
        """The recipe's model, or the given one, with its arguments; given arguments win.

        Raises:
            OptionError: neither names a model.
        """
        from ela_probe.models.registry import ModelSpec, family_of

        name = model or self.model
        if name is None:
            raise OptionError("no model is named: add --model NAME (see `ela-probe models`)")
        family = family_of(name)
        of_family = self.family_args.get(family.name, {}) if family is not None else {}
        return ModelSpec(name=name, args={**self.model_args, **of_family, **(args or {})})

    def config(self, task: Task = "images", **changes: Any) -> TrainConfig:
        """The training settings; `changes` win. Raises OptionError as `TrainConfig.of`."""
        return TrainConfig.for_task(
            task, **{**self.train.model_dump(include=self.train.model_fields_set), **changes}
        )

    def ela_config(self, settings: str | None = None) -> ELAConfig | None:
        """The ELA settings, None for a run without; `settings` (`skip=0.5,warmup=10`) win.

        Raises:
            OptionError: a setting is unknown or out of bounds.
        """
        if settings is None:
            return self.ela
        given = ELAConfig.parse(settings)
        in_recipe = (
            {} if self.ela is None else self.ela.model_dump(include=self.ela.model_fields_set)
        )
        return ELAConfig.of(**{**in_recipe, **given.model_dump(include=given.model_fields_set)})

    def source(self, given: str | None = None) -> str:
        """`given`, or the recipe's own source. Raises OptionError: neither names data."""
        source = given or self.data.source
        if source is None:
            raise OptionError("no data is named: add --data SOURCE, e.g. digits or imagenet:DIR")
        return source

    def open_data(
        self,
        source: str | None = None,
        *,
        root: str | Path | None = None,
        download: bool = False,
        seed: int = 0,
        **changes: Any,
    ) -> "Data":
        """The recipe's data, or `source`; `changes` win over the recipe's own options.

        Raises:
            OptionError: neither names data. DataError: as `open_data`.
        """
        from ela_probe.data.opening import open_data

        options = {**self.data.model_dump(exclude={"source"}, exclude_none=True), **changes}
        return open_data(self.source(source), root=root, download=download, seed=seed, **options)


def read_recipe(recipe: str | Path) -> Recipe:
    """Read a YAML file, or the built-in recipe of that name.

    Raises:
        OptionError: there is no such file, it is no valid YAML, or a key is unknown or has a wrong
            value; one line names the file, the keys and what is expected.
    """
    from ela_probe.models.registry import FAMILIES, family_of

    path = find_recipe(recipe)
    text = read_document(
        path,
        what="the recipe",
        expected="a recipe in YAML",
        error=OptionError,
        most=LARGEST_BY_HAND,
    )
    with refusing(OptionError, f"{path} is no valid YAML"):
        refuse_deep(text)
        content = yaml.load(text, Loader=UniqueKeys)
        refuse_surrogates(content)
    if not isinstance(content, dict):
        raise OptionError(
            f"{path} holds a {type(content).__name__}, expected a mapping with some of "
            f"{', '.join(Recipe.model_fields)}"
        )
    with refusing(OptionError, str(path), model=Recipe, limit=None):
        read = Recipe.model_validate(content)
    if read.model is not None and ":" not in read.model and family_of(read.model) is None:
        hint = did_you_mean(read.model.rstrip("0123456789"), FAMILIES)
        raise OptionError(
            f"{path}: model {read.model!r} is not known{hint}; see `ela-probe models`"
        )
    for name in read.family_args:
        if name not in FAMILIES:
            hint = did_you_mean(name, FAMILIES)
            raise OptionError(
                f"{path}: family_args.{shortened(name)} is no family of models{hint}; expected a "
                "model's name without its depth"
            )
    return read


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe: a path, or the name of a built-in one. Raises OptionError."""
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    known = built_in()
    if str(recipe) in known:
        return known[str(recipe)]
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        raise OptionError(f"{recipe} is no file; expected a recipe, or the name of a built-in one: "
                          f"{', '.join(known)}")  # fmt: skip
    raise OptionError(
        f"no recipe is called {str(recipe)!r}{did_you_mean(str(recipe), known)}; expected "
        f"FILE.yaml or one of {', '.join(known)}"
    )


def built_in() -> dict[str, Path]:
    """The files of the built-in recipes by name."""
    try:
        folder = Path(str(importlib.resources.files("ela_probe") / "recipes"))
    except ModuleNotFoundError:  # a checkout that is not installed
        folder = Path(__file__).parents[1] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


class UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]
    """A YAML loader that refuses Python objects and repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping. Raises ConstructorError when a key comes twice."""
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = next((key for key, count in keys.items() if count > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"got the key {shortened(twice)!r} twice", node.start_mark
            )
        return super().construct_mapping(node, deep)
