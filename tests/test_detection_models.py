"""Faster and Mask R-CNN over our ResNets: counts as published, losses, sites and backbones."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

from ela_probe import SkipPlan, discover, prune
from ela_probe.checkpoint import load_checkpoint, save_checkpoint
from ela_probe.errors import CheckpointError, ModelError, OptionError
from ela_probe.models.detection import Detected, Detector
from ela_probe.models.registry import ModelSpec, create_model, parameter_count
from ela_probe.pipeline.backbone import detector_over
from ela_probe.sites import fingerprint
from tests.support.detection import SMALL, images_and_targets, settled_detector
from tests.support.identities import assert_same
from tests.support.networks import settled
from tests.support.pruning import zeroed

ATTENTIONS = ["", "se_", "eca_", "cbam_", "dia_", "rla_g_", "mrla_b_", "mrla_l_"]
# Tables of ECA-Net (arXiv 1910.03151, table 4; the plain networks have the same numbers there),
# made with mmdetection. It counts what is trained: not the stem and the first stage.
PUBLISHED = {
    "fasterrcnn_eca_imagenet_resnet50_fpn": 41.53,
    "fasterrcnn_eca_imagenet_resnet101_fpn": 60.52,
    "maskrcnn_eca_imagenet_resnet50_fpn": 44.18,
    "maskrcnn_eca_imagenet_resnet101_fpn": 63.17,
    "fasterrcnn_imagenet_resnet50_fpn": 41.53,
    "maskrcnn_imagenet_resnet50_fpn": 44.18,
}


@pytest.mark.parametrize("kind", ["fasterrcnn", "maskrcnn"])
def test_a_plain_one_has_the_parameters_of_torchvision(kind: str) -> None:
    with torch.device("meta"):
        ours = create_model(f"{kind}_imagenet_resnet50_fpn")
        build = getattr(detection, f"{kind}_resnet50_fpn")
        theirs = build(weights=None, weights_backbone=None)
    assert parameter_count(ours) == parameter_count(theirs)
    heads = {n: p.shape for n, p in theirs.named_parameters() if not n.startswith("backbone.body")}
    assert heads == {
        n: p.shape for n, p in ours.named_parameters() if not n.startswith("backbone.body")
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_trained_is_as_large_as_published(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=81, frozen_stages=2, frozen_norm=True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(trained / 1e6, 2) == PUBLISHED[name]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_it_trains_with_a_gradient_for_every_trained_parameter(attention: str) -> None:
    torch.manual_seed(0)
    model = create_model(f"maskrcnn_{attention}resnet14_fpn", num_classes=3, **SMALL)
    images, sizes, targets = images_and_targets(3, masks=True)
    losses = model(images, sizes, targets)
    assert set(losses) == {
        *("loss_objectness", "loss_rpn_box_reg"),
        *("loss_classifier", "loss_box_reg", "loss_mask"),
    }
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_the_loss_of_an_image_is_that_of_training_on_it_alone() -> None:
    """With frozen statistics of the norms and the same random draws."""
    model = settled_detector("maskrcnn_mrla_b_resnet14_fpn", frozen_norm=True).double()
    images, sizes, targets = images_and_targets(3, masks=True, dtype=torch.float64)
    found = model(images, sizes, targets)
    assert isinstance(found, Detected)
    model.train()
    model.transform.eval()  # in training it draws a size first
    for number, loss in enumerate(found.losses):
        torch.manual_seed(0)
        own = slice(number, number + 1)
        alone = model(images[own], sizes[own], targets[own])
        assert_same(loss, torch.stack(list(alone.values())).sum())


def test_losses_come_with_the_same_detections_and_change_no_random_state() -> None:
    model = settled_detector("fasterrcnn_resnet14_fpn")
    images, sizes, targets = images_and_targets(2)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    both = model(images, sizes, targets)
    assert torch.equal(state, torch.get_rng_state())
    assert not any(part.training for part in model.modules())
    for ours, alone in zip(both.detections, model(images, sizes), strict=True):
        assert all(torch.equal(ours[name], alone[name]) for name in alone)


def test_padding_beside_an_image_is_no_part_of_it() -> None:
    model = settled_detector("fasterrcnn_resnet14_fpn")
    images, _, _ = images_and_targets(1)
    wide = torch.cat([images, torch.rand_like(images)], dim=3)
    expected = model(images)[0]
    found = model(wide, torch.tensor([images.shape[-2:]]))[0]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_training_without_targets_is_refused() -> None:
    model = create_model("fasterrcnn_resnet8_fpn", **SMALL)
    with pytest.raises(ModelError, match="needs targets"):
        model(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("attention", ["dia_", "dla_b_", "mrla_b_", "mrla_l_"])
def test_the_sites_are_those_of_the_classifier(attention: str) -> None:
    found = discover(settled_detector(f"fasterrcnn_{attention}resnet20_fpn"))
    assert fingerprint(found.stages) == fingerprint(
        discover(create_model(f"{attention}resnet20")).stages
    )


def test_its_sites_are_no_bystanders() -> None:
    """What attends besides is the softmax of the box head."""
    model = settled_detector("fasterrcnn_mrla_b_resnet14_fpn")
    found = discover(model, images_and_targets(2)[0])
    assert [bystander.name for bystander in found.bystanders] == ["roi_heads"]


@torch.no_grad()
def test_a_plan_of_the_classifier_prunes_the_detector() -> None:
    """Skipping equals zeroing the retrieval."""
    stages = discover(create_model("mrla_b_resnet20")).stages
    sites = ["stages.0.1.retrieval", "stages.2.2.retrieval"]
    model = settled_detector("fasterrcnn_mrla_b_resnet20_fpn").double()
    pruned = prune(model, SkipPlan.for_actions(stages, dict.fromkeys(sites, "skip")))
    assert parameter_count(pruned) < parameter_count(model)
    images, sizes, targets = images_and_targets(2, dtype=torch.float64)
    before = model(images, sizes, targets)
    body = model.get_submodule("backbone.body")
    zeroed(body, sites)
    assert_same(pruned(images, sizes, targets).losses, model(images, sizes, targets).losses)
    assert (before.losses - pruned(images, sizes, targets).losses).abs().max() > 1e-6


def test_frozen_parts_keep_their_weights_and_statistics() -> None:
    model = create_model(
        "fasterrcnn_dia_resnet14_fpn", num_classes=3, frozen_stages=2, **SMALL
    ).train()
    frozen = ("conv1.", "bn1.", "stages.0.", "shared.0.")
    body = model.get_submodule("backbone.body")
    before = {name: value.clone() for name, value in body.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    torch.stack(list(model(*images_and_targets(2)).values())).sum().backward()
    optimizer.step()
    for name, value in body.state_dict().items():
        if name.startswith(frozen):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(before["stages.1.0.body.bn1.running_mean"], norm_of(body, 1))
    model.backbone.frozen_norm = True
    model.train()
    kept = norm_of(body, 1).clone()
    model(*images_and_targets(2))
    assert torch.equal(kept, norm_of(body, 1))


def norm_of(body: nn.Module, stage: int) -> Tensor:
    return body.get_buffer(f"stages.{stage}.0.body.bn1.running_mean")


def test_more_frozen_stages_than_there_are_is_an_error() -> None:
    with pytest.raises(ModelError, match="use 0 to 4"):
        create_model("fasterrcnn_resnet8_fpn", frozen_stages=5)


@pytest.mark.parametrize(
    "name", ["fasterrcnn_resnt20_fpn", "fasterrcnn_attnres6_fpn", "fasterrcnn_resnet20"]
)
def test_a_name_without_a_resnet_is_unknown(name: str) -> None:
    with pytest.raises(ModelError, match="no model is called"):
        create_model(name)


def test_a_detector_over_a_pruned_classifier_computes_its_features(tmp_path) -> None:
    classifier = settled("mrla_b_resnet20", head_dim=8)
    plan = SkipPlan.for_actions(discover(classifier).stages, {"stages.1.1.retrieval": "skip"})
    smaller = prune(classifier, plan)
    spec = ModelSpec(name="mrla_b_resnet20", args={"head_dim": 8})
    path = save_checkpoint(tmp_path / "small.pt", smaller, spec=spec, plans=[plan])
    wanted = ModelSpec(name="fasterrcnn_mrla_b_resnet20_fpn", args={"num_classes": 3, **SMALL})
    model, built, plans = detector_over(wanted, path)
    assert plans == (plan,)
    assert built.args["head_dim"] == 8
    assert built.args["frozen_stages"] == 2
    assert isinstance(model, Detector)
    body, images = model.eval().backbone.body, torch.rand(2, 3, 32, 32)
    body.conv1.stride, body.shrink = (1, 1), nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        ours, theirs = body.stem(images), smaller.eval().stem(images)  # type: ignore[operator]
        for number in range(3):
            ours = body.run_stage(number, ours)
            theirs = smaller.run_stage(number, theirs)  # type: ignore[operator]
    assert torch.equal(ours, theirs)
    saved = save_checkpoint(tmp_path / "detector.pt", model, spec=built, plans=plans)
    read = load_checkpoint(saved).state_dict()
    assert all(torch.equal(value, read[name]) for name, value in model.state_dict().items())


def test_a_backbone_of_published_code_is_read_by_its_names(tmp_path) -> None:
    from torchvision.models import resnet50

    published = resnet50(weights=None)
    path = tmp_path / "resnet50.pth"
    torch.save(published.state_dict(), path)
    model, _, plans = detector_over(ModelSpec(name="fasterrcnn_imagenet_resnet50_fpn"), path)
    assert not plans
    weight = model.get_parameter("backbone.body.stages.3.2.body.conv3.weight")
    assert torch.equal(weight, published.layer4[2].conv3.weight)


def test_a_backbone_of_another_network_is_refused(tmp_path) -> None:
    spec = ModelSpec(name="resnet8")
    path = save_checkpoint(tmp_path / "c.pt", create_model("resnet8"), spec=spec)
    with pytest.raises(CheckpointError, match="holds a resnet8, but .* needs a mrla_b_resnet8"):
        detector_over(ModelSpec(name="fasterrcnn_mrla_b_resnet8_fpn"), path)
    with pytest.raises(OptionError, match="no detector"):
        detector_over(spec, path)


@pytest.mark.parametrize("name", ["fasterrcnn_mrla_b_resnet14_fpn", "maskrcnn_resnet14_fpn"])
def test_parts_of_a_batch_are_padded_as_the_whole(name: str) -> None:
    """In float64, where a convolution of fewer images may round otherwise."""
    model = settled_detector(name, box_score_thresh=0.0, max_size=128).double()
    images, sizes, targets = images_and_targets(
        3, masks=name.startswith("mask"), dtype=torch.float64
    )
    wide = torch.nn.functional.pad(images, (0, 32))
    sizes[0, 1] = 96
    with torch.no_grad():
        whole = model(wide, sizes, targets)
        part = model(images[1:], sizes[1:], targets[1:], padded_with=sizes)
        alone = model(images[1:], sizes[1:], targets[1:])
    torch.testing.assert_close(part.losses, whole.losses[1:], rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(part.detections, whole.detections[1:], strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-7, atol=1e-7)
    assert not torch.allclose(alone.losses, part.losses, rtol=1e-6)  # so that it matters
