"""Figures by head, class and sample: they show what was recorded, and say what was not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ela_probe_cli import main
from matplotlib.offsetbox import AnnotationBbox
from numpy.typing import NDArray

from ela_probe import Analysis, create_model
from ela_probe.analysis.views import StageViews
from ela_probe.checkpoint import read_checkpoint
from ela_probe.data.opening import open_data
from ela_probe.errors import OptionError
from ela_probe.models.registry import ModelSpec
from ela_probe.pipeline.inputs import analysed_samples
from ela_probe.report import plots
from ela_probe.report.sample_pictures import picture_of
from ela_probe.report.view_plots import MOST_ROWS, shown_classes
from tests.support.synthetic_analyses import make_analysis, with_views

ANALYSIS = with_views(make_analysis((5, 3), samples=30))
PART = ANALYSIS.stages[0]
assert PART.views is not None


def cells(ax: Any) -> NDArray[np.float64]:
    return np.asarray(ax.collections[0].get_array()).ravel()


def test_heads_and_classes_are_drawn_without_the_first_site() -> None:
    assert PART.views is not None
    _, ax = plots.head_divergence(PART)
    np.testing.assert_array_equal(cells(ax), PART.views.head_kl[:, 1:].ravel())
    _, ax = plots.class_divergence(PART, names=["ape", "bee", "cow"])
    np.testing.assert_array_equal(cells(ax), PART.views.class_kl[[0, 2], 1:].ravel())
    assert [text.get_text() for text in ax.get_yticklabels()] == ["ape", "cow"]


def test_of_many_classes_those_farthest_from_the_mean_are_shown() -> None:
    kl = np.nan_to_num(PART.adjacent("kl"))
    factors = np.linspace(0.9, 1.1, 100)
    views = StageViews(np.zeros((0, 5)), factors[:, None] * kl, np.ones(100, dtype=np.int64))
    part = replace(PART, views=views)
    half = MOST_ROWS // 2
    assert shown_classes(part).tolist() == [*range(half), *range(100 - half, 100)]
    _, ax = plots.class_divergence(part)
    assert len(cells(ax)) == MOST_ROWS * 4
    assert ax.get_ylabel() == f"class ({MOST_ROWS} of 100)"


def test_a_bar_reaches_from_the_mean_to_the_sample() -> None:
    assert PART.views is not None
    mean = PART.adjacent("kl")[1:].mean()
    _, ax = plots.unusual_samples(PART)
    for bar, kl in zip(ax.patches, PART.views.unusual_kl, strict=True):
        assert (bar.get_x(), bar.get_x() + bar.get_width()) == pytest.approx((mean, kl))  # type: ignore[attr-defined]
    assert [t.get_text() for t in ax.get_yticklabels()][:2] == ["sample 0", "sample 3"]


def test_samples_are_shown_as_images_or_in_words() -> None:
    images = [(torch.rand(3, 4, 4), torch.tensor(1)) for _ in range(30)]
    _, ax = plots.unusual_samples(PART, samples=images, names=["ape", "bee"])
    assert sum(isinstance(artist, AnnotationBbox) for artist in ax.artists) == 8
    assert ax.get_yticklabels()[1].get_text() == "sample 3: bee"
    _, ax = plots.unusual_samples(PART, samples=[f"text {k}" for k in range(30)])
    assert ax.get_yticklabels()[1].get_text() == "sample 3: 'text 3'"


def test_an_image_is_stretched_and_tokens_are_listed() -> None:
    image, words = picture_of((np.array([[[-2.0, 0.0], [2.0, 2.0]]]), 7))
    assert image is not None
    assert image[..., 0].tolist() == [[0, 128], [255, 255]]
    assert words == "class 7"
    tokens = (torch.arange(20), torch.arange(1, 21))
    assert picture_of(tokens) == (None, "0 1 2 3 4 5 6 7 8 9 10 11 ...")


@pytest.mark.parametrize("name", ["head_divergence", "class_divergence", "unusual_samples"])
def test_what_was_not_recorded_is_said(name: str) -> None:
    for part in (make_analysis((3,)).stages[0], with_views(make_analysis((1,))).stages[0]):
        figure, ax = getattr(plots, name)(replace(part, views=None))
        figure.canvas.draw()
        assert ax.texts
    _, mine = getattr(plots, name)(PART)
    assert mine.get_title(loc="left").startswith("stages.0")


def test_the_figures_are_saved_and_methods_of_an_analysis(tmp_path: Path) -> None:
    names = {path.stem for path in ANALYSIS.plot.save(tmp_path)}
    assert {"heads-stages.0", "classes-stages.1", "samples-stages.0"} <= names
    for method in (ANALYSIS.plot.heads, ANALYSIS.plot.classes, ANALYSIS.plot.unusual):
        assert method("stages.1")[1].get_title(loc="left").startswith("stages.1")


# The samples, read again


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An untrained checkpoint and its analysis of 40 digits."""
    folder = tmp_path_factory.mktemp("analysed")
    torch.manual_seed(0)
    torch.save(create_model("mrla_b_resnet14", num_classes=10).state_dict(), folder / "m.pt")
    words = ["analyze", str(folder / "m.pt"), "--model", "mrla_b_resnet14", "--data", "digits"]
    words += ["--limit", "40", "--device", "cpu", "--no-figures", "--no-damage"]
    assert main([*words, "-o", str(folder / "analysis")]) == 0
    return folder / "m.pt", folder / "analysis"


def test_unusual_samples_are_read_again_from_the_data(analysed: tuple[Path, Path]) -> None:
    checkpoint, folder = analysed
    analysis = Analysis.load(folder)
    assert analysis.provenance.classes == tuple(str(digit) for digit in range(10))
    checked = read_checkpoint(
        checkpoint, spec=ModelSpec(name="mrla_b_resnet14", args={"num_classes": 10})
    )
    samples = analysed_samples(checked, analysis.provenance)
    expected = open_data("digits").dataset("train", limit=40)
    assert len(samples) == 40  # type: ignore[arg-type]
    for position in range(0, 40, 13):
        assert torch.equal(samples[position][0], expected[position][0])
    other = analysis.provenance.model_copy(update={"checkpoint_sha256": "0" * 64})
    with pytest.raises(OptionError, match="is not the checkpoint that was analysed"):
        analysed_samples(checked, other)
    random = analysis.provenance.model_copy(update={"split": None})
    with pytest.raises(OptionError, match="leave --checkpoint out"):
        analysed_samples(checked, random)
