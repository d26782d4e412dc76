"""The registry and the networks' shapes."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from ela_probe.errors import ModelError
from ela_probe.models.mrla import MRLABase
from ela_probe.models.registry import (
    FAMILIES,
    ModelFamily,
    ModelSpec,
    create_model,
    parameter_count,
    register_family,
)

CIFAR = sorted(f for f in FAMILIES if f.endswith("resnet") and "imagenet" not in f)


@pytest.mark.parametrize("family", CIFAR)
@pytest.mark.parametrize(("block", "depth"), [("basic", 8), ("basic", 14), ("bottleneck", 11)])
def test_a_family_builds_any_depth(family: str, block: str, depth: int) -> None:
    model = create_model(f"{family}{depth}", block=block, num_classes=7, in_channels=1)
    assert model(torch.randn(2, 1, 16, 16)).shape == (2, 7)


def test_head_dim_and_drop_path_reach_the_retrievals() -> None:
    model = create_model("mrla_b_resnet8", head_dim=8, drop_path=0.5)
    retrievals = [m for m in model.modules() if isinstance(m, MRLABase)]
    assert [r.heads for r in retrievals] == [2, 4, 8]
    assert {r.drop_path.p for r in retrievals} == {0.5}
    torch.manual_seed(0)
    images = torch.randn(4, 3, 16, 16)
    assert not torch.equal(model(images), model(images))  # in training some are dropped


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mrla_b_resnet2", {}, "depth 2 is not 6n.2"),
        ("mrla_b_resnet21", {}, "use 20 or 26"),
        ("mrla_b_resnet20", {"block": "bottleneck"}, None),
        ("mrla_b_resnet32", {"block": "bottleneck"}, "use 29 or 38"),
        ("mrla_b_imagenet_resnet34", {}, "use 50, 101 or 152"),
        ("imagenet_resnet50", {"stem": "wide"}, "stem='wide'"),
        ("imagenet_resnet50", {"block": "basic"}, "block='basic'"),
        ("mrla_b_resnt20", {}, "did you mean 'mrla_b_resnet20'"),
        ("MRLA_B_RESNET20", {}, "no model is called"),
        ("mrla_b_resnet", {}, "did you mean"),
        ("", {}, "see `ela-probe models`"),
        ("mrla_b_resnet20", {"head_dim": 3}, "head_dim=3 does not divide 16"),
        ("mrla_b_resnet20", {"num_classes": 0}, "num_classes=0"),
        ("mrla_b_resnet20", {"num_classes": "many"}, "num_classes='many'"),
        ("mrla_b_resnet20", {"drop_path": 1.0}, "drop_path=1.0"),
        ("mrla_b_resnet20", {"block": "wide"}, "block='wide'"),
        ("mrla_b_resnet20", {"width": 3}, "width=3"),
    ],
)
def test_what_cannot_be_built_is_said(
    name: str, arguments: dict[str, object], message: str | None
) -> None:
    if message is None:
        create_model(name, **arguments)
        return
    with pytest.raises(ModelError, match=message) as caught:
        create_model(name, **arguments)
    assert "\n" not in str(caught.value)


def tiny(width: int = 3) -> nn.Module:
    return nn.Linear(width, 2)


def test_a_factory_is_named_by_its_import_path() -> None:
    model = ModelSpec(name="tests.test_models:tiny", args={"width": 5}).build()
    assert parameter_count(model) == 12


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.test_models:absent", "has no attribute 'absent'"),
        ("no.such.module:f", "cannot find the module of"),
        (":f", "expected package.module:function"),
        ("builtins:dict", "returned dict; expected a torch.nn.Module"),
        ("tests.test_models:tiny", "could not be built"),
    ],
)
def test_a_wrong_factory_is_said(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelSpec(name=name, args={"depth": 1} if name.endswith("tiny") else {}).build()


def test_the_tap_costs_no_parameter() -> None:
    assert not list(MRLABase(16).tap.parameters())


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_table_has_the_parameters_of_every_model_that_it_lists(family: ModelFamily) -> None:
    with torch.device("meta"):
        counts = [parameter_count(create_model(f"{family.name}{d}")) for d in family.depths]
    assert counts == list(family.parameters)


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ModelError, match="'resnet' is already registered"):
        register_family(FAMILIES["resnet"])


def test_the_list_of_models_is_read_without_torch() -> None:
    code = (
        "import sys; from ela_probe_cli import main; assert main(['models', '--json']) == 0;"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["models"]) == sum(len(f.depths) for f in FAMILIES.values())
