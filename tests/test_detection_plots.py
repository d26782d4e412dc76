"""Figures of detectors: every object that is sure enough is drawn, and every figure is a bar."""

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

from ela_probe.errors import OptionError
from ela_probe.evaluation.average_precision import AveragePrecision, Precisions
from ela_probe.evaluation.comparison import Comparison
from ela_probe.report import plots
from tests.support.comparisons import compared, comparison_of


def test_each_sure_object_has_a_box_in_each_column() -> None:
    image = torch.rand(3, 20, 30)
    found = {
        "boxes": torch.tensor([[1.0, 2.0, 5.0, 9.0], [3.0, 3.0, 8.0, 8.0]]),
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.9, 0.2]),
        "masks": torch.ones(2, 1, 20, 30),
    }
    target = {"boxes": found["boxes"], "labels": found["labels"]}
    figure, grid = plots.detections_side_by_side(
        [image, image], {"truth": [target] * 2, "model": [found] * 2}, classes=("a", "b")
    )
    assert grid.shape == (2, 2)
    for row in grid:
        boxes = [[p for p in axes.patches if isinstance(p, Rectangle)] for axes in row]
        assert [len(drawn) for drawn in boxes] == [2, 1]
        assert boxes[1][0].get_bbox().bounds == (1, 2, 4, 7)
        assert [len(axes.images) for axes in row] == [1, 2]
    figure.canvas.draw()


def test_as_many_detections_as_images() -> None:
    with pytest.raises(OptionError, match="expected equal counts"):
        plots.detections_side_by_side([torch.rand(3, 4, 4)], {"a": []}, classes=("a",))


def detectors() -> Comparison:
    whole = comparison_of(compared("a", kept=3), compared("b", kept=3))
    box = AveragePrecision(ap=0.4, ap50=0.6, ap75=0.5, small=None, medium=0.3, large=0.5)
    rows = tuple(
        row.model_copy(update={"accuracy": None, "precision": Precisions(box=box)})
        for row in whole.models
    )
    return whole.model_copy(update={"models": rows})


def test_precision_has_a_bar_for_each_size_and_model() -> None:
    _, axes = plots.precision_by_size(detectors())
    heights = [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)]
    assert len(heights) == 8
    assert heights[:4] == pytest.approx([0.4, np.nan, 0.3, 0.5], nan_ok=True)
    with pytest.raises(OptionError, match="has no masks"):
        plots.precision_by_size(detectors(), masks=True)
    with pytest.raises(OptionError, match="has no detectors"):
        plots.precision_by_size(comparison_of(compared("a", kept=3)))


def test_the_table_shows_precision_in_place_of_accuracy() -> None:
    headings, rows = detectors().table()
    assert headings[1:7] == ("box AP", "box AP50", "box AP75", "box APs", "box APm", "box APl")
    assert rows[0][1:7] == ("40.0%", "60.0%", "50.0%", "–", "30.0%", "50.0%")
    assert all(len(row) == len(headings) for row in rows)
