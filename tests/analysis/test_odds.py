"""Log odds against the textbook formula."""

import numpy as np
import pytest
import xarray as xr

from featstore.analysis.odds import log_odds


def test_inside_it_is_the_logarithm_of_the_odds():
    share = xr.DataArray([[0.2, 0.5, 0.9]], dims=("model", "dataset"))
    np.testing.assert_allclose(log_odds(share), np.log(share / (1 - share)))
    assert log_odds(share).dims == share.dims


def test_all_and_none_are_half_an_image_from_the_edge_or_nothing():
    share = xr.DataArray([0.0, 1.0, 1.0, np.nan, 0.5], dims="model")
    n_test = xr.DataArray([50.0, 50.0, np.nan, 50.0, 50.0], dims="model")
    half = np.log(0.01 / 0.99)
    np.testing.assert_allclose(log_odds(share, n_test), [half, -half, np.nan, np.nan, 0])
    np.testing.assert_allclose(log_odds(share), [*[np.nan] * 4, 0])


@pytest.mark.parametrize("n_test", [None, xr.DataArray([10.0, 10.0], dims="model")])
def test_what_is_no_share_has_no_odds(n_test):
    assert log_odds(xr.DataArray([-0.1, 40.0], dims="model"), n_test).isnull().all()
