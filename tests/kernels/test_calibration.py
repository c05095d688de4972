import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from torchmetrics.functional.classification import multiclass_calibration_error

from featstore.kernels.calibration import fit_temperature, folded_error, scaled_error


def problem(n=400, c=5, sharpness=4.0, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c, n)
    logits = rng.normal(size=(n, c)) + 1.5 * np.eye(c)[y]
    return log_softmax(sharpness * logits, axis=1), y


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 6.0])
def test_the_temperature_is_the_optimum_that_scipy_finds_over_logs(sharpness):
    scores, y = problem(sharpness=sharpness)

    def loss(x):
        return -log_softmax(scores / np.exp(x[0]), axis=1)[np.arange(len(y)), y].sum()

    expected = np.exp(minimize(loss, [0.0], method="Nelder-Mead", options={"xatol": 1e-7}).x[0])
    assert fit_temperature(scores, y) == pytest.approx(expected, rel=1e-4)


def test_scores_made_sharper_have_their_temperature_raised_by_as_much():
    scores, y = problem()
    assert fit_temperature(3 * scores, y) == pytest.approx(3 * fit_temperature(scores, y), rel=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 7.0])
def test_the_error_after_scaling_is_that_of_torchmetrics(temperature):
    scores, y = problem()
    scaled = torch.softmax(torch.from_numpy(scores / temperature), dim=1)
    expected = multiclass_calibration_error(scaled, torch.from_numpy(y), 5, n_bins=15, norm="l1")
    assert scaled_error(scores, y, temperature) == pytest.approx(float(expected), abs=1e-6)


def test_folds_are_fitted_on_a_fifth_and_measured_on_the_rest():
    scores, y = problem(n=203)
    expected = []
    for fold in range(5):
        inside = np.zeros(203, bool)
        inside[fold::5] = True
        temperature = fit_temperature(scores[inside], y[inside])
        expected.append(scaled_error(scores[~inside], y[~inside], temperature))
    assert folded_error(scores, y) == pytest.approx(np.mean(expected))
    assert folded_error(scores, y) < scaled_error(scores, y, 1.0)


def test_fewer_rows_than_folds_are_refused():
    scores, y = problem(n=4)
    with pytest.raises(ValueError, match="5 folds need as many rows, got 4"):
        folded_error(scores, y)
