"""The table of methods: what it holds, that runs resume, and that nothing is mixed up."""

import json
from typing import Any

import pytest
import torch

from benchmarks.cases import methods
from benchmarks.support import results, runs
from benchmarks.support.contestants import Network
from benchmarks.support.method import Method, all_methods, backbone_of
from benchmarks.support.steps import step_in_training
from ela_probe.errors import OptionError
from ela_probe.models.registry import create_model
from ela_probe.pipeline.train import train
from ela_probe.training.config import TrainConfig
from ela_probe.training.recipes import Recipe
from tests.support.image_sets import write_images

RECIPE = """
model: mrla_b_resnet14
data: {source: "npz:%s", val_fraction: 0.2}
train: {epochs: 2, batch_size: 16, lr: 0.05}
ela: {skip: 0.3}
seeds: [0, 1]
"""
MODELS = [
    *("resnet14", "dia_resnet14", "mrla_b_resnet14", "mrla_b_resnet14+ela"),
    "mrla_b_resnet14+ela:skip=0.5,action=drop",
]
LABELS = [
    *("resnet14", "dia_resnet14", "mrla_b_resnet14", "mrla_b_resnet14 + ELA"),
    "mrla_b_resnet14 + ELA (skip 0.5, action drop)",
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    path = folder / "tiny.yaml"
    path.write_text(RECIPE % write_images(folder / "set"))
    return path


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory):
    """The folder of a finished methods."""
    output = tmp_path_factory.mktemp("runs")
    methods.run(str(recipe), output, model=MODELS, rounds=2, device="cpu")
    return output


def tables_in(output):
    return list(json.loads((output / "table.json").read_text())["tables"].values())


@pytest.mark.slow
def test_the_table_has_a_row_a_method_and_the_runs_a_row_a_seed(done):
    rows, each, (settings,) = tables_in(done)
    assert [row["method"] for row in rows] == LABELS
    assert [(row["method"], row["seed"]) for row in each] == [
        (label, seed) for seed in (0, 1) for label in LABELS
    ]
    plain, dia, base, ela, half = rows
    for row, name in ((plain, "plain"), (dia, "DIA"), (base, "MRLA-B")):
        assert row[f"step / {name}"] == row[f"run / {name}"] == "1.00 (1.00-1.00)"
    assert not any("published" in column for column in plain)
    assert [row["skipped"] for row in rows] == ["–", "–", "–", "2 of 6", "3 of 6"]
    assert half["parameters"] < ela["parameters"]
    assert ela["parameters"] < base["parameters"]
    assert plain["parameters"] < base["parameters"]
    assert float(ela["EBQM s"]) >= 0
    assert (settings["data"], settings["training images"], settings["epochs"]) == ("npz:set", 48, 2)
    assert (done / "table.md").read_text().startswith("### methods")


@pytest.mark.slow
def test_accuracy_is_mean_and_deviation_over_the_seeds(done):
    rows, each, _ = tables_in(done)
    for row in rows:
        values = torch.tensor([r["accuracy"] for r in each if r["method"] == row["method"]]) * 100
        assert row["accuracy, %"] == f"{values.mean():.2f} ± {values.std():.2f}"
    assert results.mean_and_deviation([50.0]) == "50.00"


@pytest.mark.slow
def test_finished_runs_are_not_repeated_and_others_go_on(done, recipe, monkeypatch):
    before = tables_in(done)[1]
    (done / "resnet14-s1" / "result.json").unlink()
    resumed = []

    def watched(*arguments, **options):
        resumed.append((options["output"].name, options["resume"]))
        return train(*arguments, **options)

    monkeypatch.setattr(runs, "train", watched)
    methods.run(str(recipe), done, model=MODELS, rounds=2, device="cpu")
    assert resumed == [("resnet14-s1", True)]
    assert tables_in(done)[1] == before


@pytest.mark.slow
def test_a_run_in_a_process_of_its_own_gives_what_it_gives_here(done, recipe, tmp_path):
    methods.run(str(recipe), tmp_path, model=MODELS[:1], seed=[0], jobs=2, rounds=1, device="cpu")
    (ours,), alone = tables_in(tmp_path)[1], tables_in(done)[1][0]
    assert (ours["accuracy"], ours["loss"]) == (alone["accuracy"], alone["loss"])


@pytest.mark.slow
def test_a_folder_of_other_settings_is_refused(done, recipe):
    with pytest.raises(OptionError, match="holds a run with other settings .config .* then, "):
        methods.run(str(recipe), done, model=MODELS, epochs=3, device="cpu")
    with pytest.raises(OptionError, match="'limit': 30"):
        methods.run(str(recipe), done, model=MODELS, limit=30, device="cpu")


def test_all_methods_are_those_on_the_backbone_of_the_recipe():
    found = all_methods(Recipe(model="mrla_l_resnet20"))
    assert {"resnet20", "se_resnet20", "rla_g_resnet20", "mrla_b_resnet20+ela"} < set(found)
    assert all(backbone_of(Method.parse(text).model) == "resnet20" for text in found)
    large = all_methods(Recipe(model="imagenet_resnet50"))
    assert large[0] == "imagenet_resnet50"
    assert len(large) == len(found)


@pytest.mark.parametrize("text", MODELS)
def test_a_method_is_written_as_it_is_read_and_its_folder_is_safe(text):
    method = Method.parse(text)
    assert Method.parse(str(method)) == method
    assert set(method.folder) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.+-")


def test_settings_in_another_order_are_the_same_method():
    one, other = (
        Method.parse(f"mrla_b_resnet14+ela:{own}")
        for own in ("skip=0.50,action=drop", "action=drop,skip=.5")
    )
    assert one == other


def test_settings_of_a_method_win_over_common_ones_and_those_over_the_recipe():
    recipe = Recipe(model="mrla_b_resnet14", ela={"skip": 0.2, "warmup": 2, "ramp": 3})
    method = Method.parse("mrla_b_resnet14+ela:skip=0.5")
    config = method.settings(recipe, "skip=0.4,warmup=1", epochs=9)
    assert (config.skip, config.warmup, config.ramp) == (0.5, 1, 3)
    assert Method.parse("mrla_b_resnet14").settings(recipe, "skip=0.4", epochs=9) is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("attnres6", "got model 'attnres6', expected a ResNet"),
        ("mrlab_resnet14", "got model 'mrlab_resnet14', expected a ResNet"),
        ("mrla_b_resnet14+el", r"got method 'mrla_b_resnet14\+el', expected NAME, NAME\+ela or"),
        ("mrla_b_resnet14+ela:", ", expected NAME"),
        ("mrla_b_resnet14+ela:skip", "got 'skip', expected name=value"),
        ("mrla_b_resnet14+ela:skip=2", "skip '2': Input should be less than 1"),
        ("mrla_b_resnet14+ela:warmup=2", "final after epoch 2 of 2"),
        ("mrla_b_resnet14+ela:skip=0.9", r"method mrla_b_resnet14\+ela:skip=0.9: .*cannot skip"),
        ("resnet14+ela", r"method resnet14\+ela: ELA: no layer attention"),
        ("dia_resnet14+ela:action=recur", r"method dia_resnet14\+ela:action=recur: "),
    ],
)
def test_what_cannot_be_in_a_table_is_said_before_anything_runs(recipe, tmp_path, model, message):
    with pytest.raises(OptionError, match=message):
        methods.run(str(recipe), tmp_path, model=["resnet14", model])
    assert not list(tmp_path.iterdir())


def test_common_settings_are_checked_before_anything_runs(recipe, tmp_path):
    with pytest.raises(OptionError, match="the plan is final after epoch 2 of 2"):
        methods.run(str(recipe), tmp_path, model=MODELS, ela="warmup=2")
    with pytest.raises(OptionError, match="no --reference holds the published mrla_b_resnet14"):
        methods.run(str(recipe), tmp_path, model=MODELS[:1], reference=[tmp_path])
    assert not list(tmp_path.iterdir())


def test_timed_steps_compute_in_the_precision_of_the_runs():
    seen = []
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    images, labels = torch.randn(2, 1, 2, 2), torch.tensor([0, 2])
    for precision in ("32-true", "bf16-mixed"):
        step_in_training(model, images, labels, TrainConfig(precision=precision))()
    assert seen == [torch.float32, torch.bfloat16]


def record(method, seed, seconds):
    config = {"epochs": 2, "batch_size": 10}
    return {
        "method": method,
        "seed": seed,
        "epoch_seconds": [seconds / 2] * 2,
        "trained": 45,
        "settings": {"config": config},
    }


def test_ratios_of_runs_are_formed_within_a_seed():
    group, others = [record("a", 0, 1), record("a", 1, 8)], [record("b", 1, 4), record("b", 0, 2)]
    assert methods.run_ratios(group, others) == [0.5, 2.0]
    assert methods.with_range([0.5, 2.0]) == "1.25 (0.50-2.00)"
    assert methods.with_range(methods.run_ratios(group, [])) == "–"


@pytest.mark.parametrize(("step", "part"), [(0.1, 0.5), (0.2, 1.0), (0.9, 1.0)])
def test_only_the_steps_of_a_run_are_longer_with_the_published_network(step, part):
    """10 steps in a run of 2 s; the published one takes three times as long."""
    base, ours = record("b", 0, 2), [step] * 3
    published = [3 * step] * 3
    whole = 1 / (1 + 2 * part)
    assert methods.estimated([base], [base], ours, published) == pytest.approx([whole])
    half = record("a", 0, 1)
    assert methods.estimated([half], [base], ours, published) == pytest.approx(
        [0.5 / (1 + 2 * part)]
    )


@pytest.mark.slow
def test_the_published_network_is_timed_where_it_computes_what_ours_does(
    done, recipe, tmp_path, monkeypatch
):
    """A stand-in for a checkout: ours, whose state dict is renamed to itself."""
    built = []

    def published(network, checkouts, variant):
        built.append((network.name, network.classes, variant))
        return create_model("mrla_b_resnet14", num_classes=3)

    monkeypatch.setattr(Network, "published", published)
    options: dict[str, Any] = {
        "model": MODELS,
        "rounds": 2,
        "device": "cpu",
        "reference": [tmp_path],
    }
    before = (done / "table.json").read_text()
    methods.run(str(recipe), done, **options)
    rows = tables_in(done)[0]
    (done / "table.json").write_text(before)
    assert built == [("resnet14", 3, "base")]
    assert all(row["step / published"].endswith(")") for row in rows)
    assert all(float(row[methods.ESTIMATE].partition(" ")[0]) > 0 for row in rows)

    monkeypatch.setattr(Network, "published", lambda *_: create_model("mrla_b_resnet14"))
    with pytest.raises(OptionError, match="is not the network of this recipe and data"):
        methods.run(str(recipe), tmp_path, **options)
    assert not list(tmp_path.iterdir())
