"""Shares on the logit scale, where a point near 1 counts for more than one near a half."""

from __future__ import annotations

import xarray as xr
from scipy.special import logit


def log_odds(shares: xr.DataArray, n_test: xr.DataArray | None = None) -> xr.DataArray:
    """Natural logarithm of the odds share / (1 - share).

    A share of exactly 0 or 1 has none. It is taken for half a test image less than all, or more
    than none, if their number is known, and else is NaN. What is no share is NaN.

    Parameters
    ----------
    shares : scores in 0..1
    n_test : test images behind each; aligned with `shares`
    """
    if n_test is not None:
        half = (0.5 / n_test).fillna(0)
        inside = (shares >= 0) & (shares <= 1)
        shares = shares.clip(half, 1 - half).where(inside)
    inner = shares.where((shares > 0) & (shares < 1))
    return inner.copy(data=logit(inner.values))
