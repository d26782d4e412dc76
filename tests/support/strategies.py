"""Hypothesis strategies: the retrievals of a stage."""

import torch
from hypothesis import strategies as st
from torch import Tensor


@st.composite
def retrievals(
    draw: st.DrawFn, *, max_sites: int = 7, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Softmax weights [samples, heads, sources] of sites whose source lists grow."""
    sites = draw(st.integers(1, max_sites))
    steps = draw(st.lists(st.integers(0, 3), min_size=sites - 1, max_size=sites - 1))
    sizes = [1]
    for step in steps:
        sizes.append(sizes[-1] + step)
    samples, heads = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    spread = draw(st.floats(0.0, 4.0))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return [
        (spread * torch.randn(samples, heads, size, generator=generator, dtype=torch.float64))
        .softmax(dim=-1)
        .to(dtype)
        for size in sizes
    ]
