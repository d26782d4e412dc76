"""The table of methods: what it holds, that runs resume, and that nothing is mixed up."""

import json

import pytest
import torch

from benchmarks import table
from ela_probe.errors import OptionError
from ela_probe.recipes import Recipe
from tests.test_cli import write_images

RECIPE = """
model: mrla_b_resnet14
data: {source: "npz:%s", val_fraction: 0.2}
train: {epochs: 2, batch_size: 16, lr: 0.05}
ela: {skip: 0.3}
seeds: [0, 1]
"""
MODELS = ["resnet14", "mrla_b_resnet14", "mrla_b_resnet14+ela"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    path = folder / "tiny.yaml"
    path.write_text(RECIPE % write_images(folder / "set"))
    return path


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory):
    """The folder of a finished table."""
    output = tmp_path_factory.mktemp("runs")
    table.run(str(recipe), output, model=MODELS, rounds=2, device="cpu")
    return output


def tables_in(output):
    return list(json.loads((output / "table.json").read_text())["tables"].values())


def test_the_table_has_a_row_a_method_and_the_runs_a_row_a_seed(done):
    methods, runs, (settings,) = tables_in(done)
    assert [row["method"] for row in methods] == MODELS
    assert [(row["method"], row["seed"]) for row in runs] == [
        (method, seed) for seed in (0, 1) for method in MODELS
    ]
    plain, base, ela = methods
    assert (plain["step / plain"], base["step / MRLA-B"]) == ("1.00 (1.00-1.00)",) * 2
    assert (plain["run / plain"], base["run / MRLA-B"]) == ("1.00", "1.00")
    assert [row["skipped"] for row in methods] == ["–", "–", "2 of 6"]
    assert ela["parameters"] < base["parameters"]
    assert plain["parameters"] < base["parameters"]
    assert float(ela["EBQM s"]) >= 0
    assert (settings["data"], settings["training images"], settings["epochs"]) == ("npz:set", 48, 2)
    assert (done / "table.md").read_text().startswith("### methods")


def test_accuracy_is_mean_and_deviation_over_the_seeds(done):
    methods, runs, _ = tables_in(done)
    for row in methods:
        values = torch.tensor([r["accuracy"] for r in runs if r["method"] == row["method"]]) * 100
        assert row["accuracy, %"] == f"{values.mean():.2f} ± {values.std():.2f}"
    assert table.mean_and_deviation([50.0]) == "50.00"


def test_finished_runs_are_not_repeated_and_others_go_on(done, recipe, monkeypatch):
    before = tables_in(done)[1]
    (done / "resnet14-s1" / "result.json").unlink()
    resumed = []
    train = table.train

    def watched(*arguments, **options):
        resumed.append((options["output"].name, options["resume"]))
        return train(*arguments, **options)

    monkeypatch.setattr(table, "train", watched)
    table.run(str(recipe), done, model=MODELS, rounds=2, device="cpu")
    assert resumed == [("resnet14-s1", True)]
    assert tables_in(done)[1] == before


def test_a_run_in_a_process_of_its_own_gives_what_it_gives_here(done, recipe, tmp_path):
    table.run(str(recipe), tmp_path, model=MODELS[:1], seed=[0], jobs=2, rounds=1, device="cpu")
    (ours,), alone = tables_in(tmp_path)[1], tables_in(done)[1][0]
    assert (ours["accuracy"], ours["loss"]) == (alone["accuracy"], alone["loss"])


def test_a_folder_of_other_settings_is_refused(done, recipe):
    with pytest.raises(OptionError, match="holds a run with other settings .config .* then, "):
        table.run(str(recipe), done, model=MODELS, epochs=3, device="cpu")
    with pytest.raises(OptionError, match="'limit': 30"):
        table.run(str(recipe), done, model=MODELS, limit=30, device="cpu")


def test_all_methods_are_those_on_the_backbone_of_the_recipe():
    methods = table.all_methods(Recipe(model="mrla_l_resnet20"))
    assert {"resnet20", "se_resnet20", "rla_g_resnet20", "mrla_b_resnet20+ela"} < set(methods)
    assert all(table.backbone_of(name.removesuffix("+ela")) == "resnet20" for name in methods)
    large = table.all_methods(Recipe(model="imagenet_resnet50"))
    assert large[0] == "imagenet_resnet50"
    assert len(large) == len(methods)


def test_what_cannot_be_in_a_table_is_said_before_anything_runs(recipe, tmp_path):
    for model, message in (
        ("attnres6", "'attnres6' came; expected a ResNet"),
        ("mrlab_resnet14", "'mrlab_resnet14' came; expected a ResNet"),
    ):
        with pytest.raises(OptionError, match=message):
            table.run(str(recipe), tmp_path, model=["resnet14", model])
    with pytest.raises(OptionError, match="the plan is final after epoch 2 of 2"):
        table.run(str(recipe), tmp_path, model=MODELS, ela="warmup=2")
    assert not list(tmp_path.iterdir())
