"""How far two groups differ, within strata and by chance."""

from __future__ import annotations

from itertools import combinations
from math import comb, prod

import numpy as np
from scipy.special import stdtrit

_ROUNDING = 1e-9  # of the spread; sums of the same values in another order differ by less


def difference_within(
    y: np.ndarray, first: np.ndarray, stratum: np.ndarray
) -> tuple[float, np.ndarray, int]:
    """Difference of two groups with the strata held fixed, and what it owes to each observation.

    It is the coefficient of `first` in ordinary least squares on `first` and a dummy for each
    stratum. A stratum that holds one group alone says nothing of it, and plays no part.

    Parameters
    ----------
    y : (n,) floating
    first : (n,) bool, whether in the first group; the difference is the first's minus the other's
    stratum : (n,) integer

    Returns
    -------
    difference : float ; NaN if no stratum holds both groups
    change : (n,) float64, the difference minus that without the observation; NaN where without it
        there is none. The sum of its squares is the HC3 variance (MacKinnon & White 1985, eq. 12)
    freedom : degrees of freedom, observations of strata with both groups less coefficients
    """
    strata, place = np.unique(stratum, return_inverse=True)
    size = np.bincount(place, minlength=len(strata))
    share = np.bincount(place, weights=first, minlength=len(strata)) / size
    apart = first - share[place]
    square = np.sum(apart**2)
    mixed = (share > 0) & (share < 1)
    freedom = int(size[mixed].sum() - mixed.sum() - 1)
    if square == 0:
        return np.nan, np.full(len(y), np.nan), freedom
    from_mean = y - (np.bincount(place, weights=y, minlength=len(strata)) / size)[place]
    difference = float(np.sum(apart * from_mean) / square)
    left = 1 - 1 / size[place] - apart**2 / square  # 1 - leverage
    known = left > _ROUNDING
    change = np.divide(
        apart * (from_mean - difference * apart), square * left, out=np.zeros(len(y)), where=known
    )
    change[~known & (apart != 0)] = np.nan
    return difference, change, freedom


def t_interval(
    estimate: float, change: np.ndarray, freedom: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Limits of an estimate by what it owes to each observation, with Student's t.

    Parameters
    ----------
    change : (n,) of `difference_within`, or a difference of two such
    freedom : degrees of freedom; below 1 there are no limits, but NaN
    """
    if freedom < 1:
        return np.nan, np.nan
    reach = stdtrit(freedom, 0.5 + confidence / 2) * np.sqrt(np.sum(change**2))
    return float(estimate - reach), float(estimate + reach)


def permute_within(
    y: np.ndarray,
    first: np.ndarray,
    stratum: np.ndarray,
    *,
    most: int = 10_000,
    rng: np.random.Generator,
) -> tuple[float, float, int, bool]:
    """Permutation test of `difference_within`: labels are dealt anew within each stratum.

    All arrangements are looked at if there are at most `most`, else as many drawn at random, to
    which the one at hand is added (Phipson & Smyth 2010). Two-sided: twice the smaller tail, as
    SciPy's `permutation_test`. With three against six in the one stratum that holds both, there
    are 84 arrangements, and no p lies below 2 / 84 = .024.

    Parameters
    ----------
    y, first, stratum : (n,) as in `difference_within`

    Returns
    -------
    p : float ; NaN if no stratum holds both groups
    smallest : the smallest p that any arrangement of these values gets
    arrangements : how many there are in all
    exact : whether all were looked at
    """
    parts = [(y[stratum == one], int(first[stratum == one].sum())) for one in np.unique(stratum)]
    parts = [(values, taken) for values, taken in parts if 0 < taken < len(values)]
    arrangements = prod(comb(len(values), taken) for values, taken in parts)
    if not parts:
        return np.nan, np.nan, arrangements, True
    # Sizes of groups stay, so the difference grows with the sum of what the first group holds.
    held = sum(float(y[(stratum == one) & first].sum()) for one in _mixed(first, stratum))
    exact = arrangements <= most
    if exact:
        sums = np.zeros(1)
        for values, taken in parts:
            one = [sum(chosen) for chosen in combinations(values.tolist(), taken)]
            sums = np.add.outer(sums, one).ravel()
    else:
        sums = np.zeros(most)
        for values, taken in parts:
            dealt = rng.permuted(np.tile(values, (most, 1)), axis=1)
            sums += dealt[:, :taken].sum(axis=1)
        sums = np.append(sums, held)
    alike = _ROUNDING * max(np.ptp(y), np.finfo(float).tiny)
    least = min(np.mean(sums >= held - alike), np.mean(sums <= held + alike))
    ends = min(np.mean(sums >= sums.max() - alike), np.mean(sums <= sums.min() + alike))
    smallest = ends if exact else 1 / len(sums)
    return min(1.0, 2 * float(least)), min(1.0, 2 * float(smallest)), arrangements, exact


def _mixed(first: np.ndarray, stratum: np.ndarray) -> list[int]:
    """Strata that hold both groups."""
    return [one for one in np.unique(stratum) if 0 < first[stratum == one].mean() < 1]
