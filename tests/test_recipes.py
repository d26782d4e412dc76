"""Recipes: the built-in ones are sound, what is wrong with one is said in a line, options win."""

import csv
import re

import pytest
import torch
from ela_probe_cli import main

from ela_probe.checkpoint import read_checkpoint
from ela_probe.errors import OptionError
from ela_probe.training.recipes import Recipe, built_in, read_recipe
from tests.support.image_sets import write_images

SMALL = """
model: mrla_b_resnet14
model_args: {head_dim: 8}
data: {source: "npz:%s", val_fraction: 0.2}
train: {epochs: 2, batch_size: 16, lr: 0.05, schedule: step, milestones: [1], seed: 3}
"""


def write(folder, text):
    path = folder / "own.yaml"
    path.write_text(text)
    return path


def test_there_are_recipes_of_the_papers_and_quick_ones():
    assert set(built_in()) == {
        *("cifar10-kcla", "cifar100-kcla", "cifar10-dla", "cifar100-dla", "imagenet-mrla"),
        *("cifar10-quick-gpu", "cifar100-quick-gpu", "cifar10-quick-cpu", "fashion-quick-cpu"),
        *("coco-1x", "cells-quick-cpu"),
    }


@pytest.mark.parametrize("name", sorted(name for name in built_in() if "quick" in name))
def test_a_quick_recipe_trains_without_ela_unless_asked_and_has_the_epochs_for_it(name):
    recipe = read_recipe(name)
    assert recipe.ela_config() is None
    recipe.ela_config("skip=0.5,warmup=1,ramp=1").schedule(recipe.config().epochs)


@pytest.mark.parametrize("name", sorted(built_in()))
def test_built_in_recipes_are_read_and_their_models_build(name):
    recipe = read_recipe(name)
    assert recipe.description
    with torch.device("meta"):
        recipe.model_spec().build()
        for family in recipe.family_args:
            depth = re.sub(r"\D*", "", recipe.model_spec().name)
            recipe.model_spec(f"{family}{depth}").build()


def test_the_schedule_of_kcla_drops_after_150_and_225_of_300_epochs():
    config = read_recipe("cifar100-kcla").config()
    rates = [config.lr * config.lr_factor(step, steps_per_epoch=2) for step in range(600)]
    assert rates == pytest.approx([0.1] * 300 + [0.01] * 150 + [0.001] * 150)
    assert (config.batch_size, config.weight_decay, config.nesterov) == (128, 1e-4, False)


def test_the_1x_schedule_drops_after_8_and_11_of_12_epochs():
    """The recipe's is also the default of detection."""
    for config in (read_recipe("coco-1x").config("detection"), Recipe().config("detection")):
        rates = [config.lr * config.lr_factor(step, steps_per_epoch=100) for step in range(1200)]
        assert rates[:7] == pytest.approx([0.02 * (step + 1) / 7 for step in range(7)])
        assert rates[7:] == pytest.approx([0.02] * 793 + [0.002] * 300 + [0.0002] * 100)
        assert (config.batch_size, config.weight_decay, config.momentum) == (16, 1e-4, 0.9)


def test_the_schedule_of_mrla_warms_up_for_5_of_100_epochs_and_ends_at_0():
    config = read_recipe("imagenet-mrla").config()
    assert (config.epochs, config.batch_size, config.label_smoothing) == (100, 256, 0.1)
    factors = [config.lr_factor(step, steps_per_epoch=10) for step in range(1001)]
    assert factors[:50] == pytest.approx([(step + 1) / 50 for step in range(50)])
    assert factors[50] == 1
    assert factors[1000] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- model", "holds a list, expected a mapping with some of description, model"),
        ("", "holds a NoneType, expected a mapping"),
        ("train: {lr: fast}", r"own\.yaml: train\.lr 'fast': Input should be a valid number"),
        ("train: {learning: 1}", r"there is no 'train\.learning'.*; expected epochs, batch_size"),
        ("train: {epoch: 1}", r"there is no 'train\.epoch' \(did you mean 'epochs'\?\)"),
        ("modell: x", r"there is no 'modell' \(did you mean 'model'\?\); expected description, "),
        ("data: {limit: 0}", r"data\.limit 0: Input should be greater than or equal to 1"),
        ("train: {milestones: [5]}", "train: milestones need schedule 'step', not 'cosine'"),
        (
            "train: {epochs: 4, schedule: step, milestones: [5]}",
            r"train: milestones \(5\.0,\) must lie between 0 and epochs 4",
        ),
        ("ela: {skip: 2}", r"ela\.skip 2: Input should be less than 1"),
        (
            "ela: {skipp: 0.5}",
            r"there is no 'ela\.skipp' \(did you mean 'skip'\?\); expected",
        ),
        ("ela: {warmup: 3, freeze: 2}", "ela: freeze 2 comes before the warm-up"),
        ("model: mrlab_resnet20", r"'mrlab_resnet20' is not known \(did you mean 'mrla_b_resnet'"),
        ("family_args: {dia_resne: {}}", r"family_args\.dia_resne is no family .*'dia_resnet'"),
        ("seeds: []", "seeds .*at least 1 item"),
        ("model: a\nmodel: b", r"is no valid YAML: line 1: got the key 'model' twice"),
        ("model: [", "is no valid YAML: line 1"),
        (
            "model: !!python/object/apply:os.mkdir [x]",
            "valid YAML: line 1: could not determine",
        ),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_in_a_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=message) as caught:
        read_recipe(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_unknown_recipes_are_named_with_the_nearest(tmp_path):
    with pytest.raises(OptionError, match=r"'cifar10-kla' \(did you mean 'cifar10-kcla'\?\)"):
        read_recipe("cifar10-kla")
    with pytest.raises(OptionError, match=r"own\.yaml is no file; expected a recipe"):
        read_recipe(tmp_path / "own.yaml")
    (tmp_path / "own.yaml").write_bytes(b"\x80\xff")
    with pytest.raises(OptionError, match=r"own\.yaml: it is not text"):
        read_recipe(tmp_path / "own.yaml")


def test_a_recipe_of_nothing_has_the_defaults_of_train():
    recipe = Recipe()
    assert (recipe.config().epochs, recipe.config("tokens").epochs) == (160, 5)
    with pytest.raises(OptionError, match="no model is named: add --model"):
        recipe.model_spec()
    with pytest.raises(OptionError, match="no data is named: add --data"):
        recipe.source()


def test_arguments_of_a_family_reach_its_models_only():
    recipe = Recipe(
        model_args={"block": "bottleneck"}, family_args={"dla_b_resnet": {"head_dim": 8}}
    )
    assert recipe.model_spec("resnet29").args == {"block": "bottleneck"}
    assert recipe.model_spec("dla_b_resnet29", {"block": "basic"}).args == {
        "block": "basic",
        "head_dim": 8,
    }


def test_options_win_over_the_recipe_and_it_resumes(tmp_path, capsys):
    recipe = write(tmp_path, SMALL % write_images(tmp_path / "set"))
    words = ["train", "--recipe", str(recipe), "-o", str(tmp_path / "run"), "--device", "cpu"]
    words += ["--epochs", "3", "--lr", "0.02", "--model-args", '{"head_dim": 4}']
    assert main(words) == 0
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates == pytest.approx([0.02, 0.002, 0.002])
    header = read_checkpoint(tmp_path / "run" / "best.pt").header
    assert header.model.args == {"head_dim": 4, "num_classes": 3, "in_channels": 3}
    assert (header.data.val_fraction, header.data.seed) == (0.2, 3)
    assert main([*words, "--resume"]) == 0
    capsys.readouterr()
    assert main([*words, "--resume", "--milestones", "2"]) == 2
    assert "milestones [1.0] then, [2.0] now" in capsys.readouterr().err
    assert main([*words, "--milestones", "1,x"]) == 2
    assert "expected numbers with commas, e.g. 150,225" in capsys.readouterr().err


def test_ela_of_a_recipe_is_used_and_options_win_setting_by_setting(tmp_path):
    assert Recipe().ela_config() is None
    assert Recipe().ela_config("skip=0.5").skip == 0.5
    recipe = write(tmp_path, SMALL % write_images(tmp_path / "set") + "ela: {skip: 0.3, ramp: 1}")
    both = read_recipe(recipe).ela_config("skip=0.4,max_run=2")
    assert (both.skip, both.ramp, both.max_run) == (0.4, 1, 2)
    words = ["train", "--recipe", str(recipe), "-o", str(tmp_path / "run"), "--device", "cpu"]
    assert main(words) == 0
    (plan,) = read_checkpoint(tmp_path / "run" / "last.pt").header.plans
    assert len(plan.skipped) == 2


def test_the_list_of_recipes(capsys):
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in built_in())
    assert max(map(len, out.splitlines())) <= 80
