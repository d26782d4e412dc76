"""The one scale of all figures in nats: monotone, 0 at 0, and no outlier flattens the rest."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from ela_probe.analysis.findings import NEAR
from ela_probe.report.nats_scale import GAP, NatsScale

divergences = st.lists(
    st.just(0.0) | st.floats(1e-12, 90.0), min_size=1, max_size=30
).map(np.array)  # fmt: skip
damages = st.lists(st.floats(-3.0, 3.0), min_size=1, max_size=30).map(np.array)


@given(divergences)
def test_zero_is_at_the_bottom_and_the_order_is_kept(values: np.ndarray) -> None:
    scale = NatsScale.of(values)
    assert scale.positions(0.0) == 0.0
    assert scale.positions(scale.top) == pytest.approx(1.0)
    ordered = np.unique(np.append(values, [0.0, NEAR]))
    places = scale.positions(ordered)
    assert (np.diff(places) > 0).all() or np.diff(ordered).min() < 1e-7 * scale.top
    assert (np.diff(places) >= 0).all()
    assert places.max() <= 1 + 1e-12


@given(divergences | damages)
def test_colours_and_positions_agree_and_can_be_inverted(values: np.ndarray) -> None:
    scale = NatsScale.of(values)
    places = scale.positions(values)
    np.testing.assert_allclose(np.asarray(scale.norm()(values)), places, atol=1e-9)
    back = np.array([scale.inverse(float(p)) for p in places])
    np.testing.assert_allclose(back, values, rtol=1e-6, atol=1e-9 * scale.top)


@given(divergences | damages)
def test_an_axis_places_values_where_the_scale_does(values: np.ndarray) -> None:
    scale = NatsScale.of(values)
    axes = Figure().add_subplot()
    scale.apply(axes)
    low, high = axes.get_ylim()
    points = [scale.bottom, scale.top, *values]
    pixels = axes.transData.transform([(0, y) for y in points])[:, 1]
    places = (pixels - pixels[0]) / (pixels[1] - pixels[0])
    np.testing.assert_allclose(places, scale.positions(points), atol=1e-6)
    assert low <= scale.bottom <= scale.top < high


@given(divergences | damages)
def test_labels_keep_their_distance_and_the_mark_is_among_them(values: np.ndarray) -> None:
    scale = NatsScale.of(values)
    places, labels = scale.ticks()
    assert NEAR in places
    assert len(labels) == len(places) >= 2
    assert (np.diff(scale.positions(places)) >= GAP - 1e-12).all()


def test_a_saturated_pair_does_not_flatten_the_rest() -> None:
    usual = np.linspace(0.2, 1.0, 50)
    alone = np.ptp(NatsScale.of(usual).positions(usual))
    beside = np.ptp(NatsScale.of(np.append(usual, 87.3)).positions(usual))
    assert beside > 0.5 * alone
    spread = np.logspace(-6, 0, 60)
    assert np.ptp(NatsScale.of(np.append(spread, 87.3)).positions(spread)) > 0.6


def test_within_two_decades_the_scale_is_linear() -> None:
    values = np.linspace(0.3, 1.2, 20)
    scale = NatsScale.of(values)
    np.testing.assert_allclose(scale.positions([0.3, 0.6]), [0.25, 0.5], atol=0.01)


def test_nothing_but_zeros_and_nothing_at_all_have_a_scale() -> None:
    for values in (np.zeros(3), np.full(2, np.nan), np.array([])):
        scale = NatsScale.of(values)
        assert scale.positions([0.0, scale.top]).tolist() == [0.0, 1.0]
        assert scale.top > NEAR


def test_errors_bound_what_the_scale_resolves() -> None:
    values = np.array([1e-7, 1e-3, 2.0, -1e-6])
    fine, coarse = NatsScale.of(values, mark=None), NatsScale.of(values, mark=None, finest=0.01)
    assert fine.linear < 1e-5 < coarse.linear == 0.01
