"""Whether one protocol predicts another better than a third does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import xarray as xr
from scipy.stats import t

from featstore.analysis.coefficients import coefficients, mean_correlations
from featstore.analysis.resampling import (
    FEWEST_MODELS,
    STATISTICS,
    Floats,
    Resampling,
    Statistic,
    units_of,
)
from featstore.analysis.selection import (
    Models,
    Scale,
    existing,
    of_models,
    scores_of,
    transductive,
)
from featstore.kernels.correlate import pearson, steiger
from featstore.kernels.intervals import jackknife, stabilised
from featstore.kernels.testing import holm
from featstore.results import check_results

_NEAR_ONE = 1 - 1e-6  # draws of few models may be perfect, and Fisher's z of 1 is infinite


def compare_predictors(
    results: xr.Dataset,
    target: str,
    protocols: Sequence[str] = (),
    *,
    statistic: Statistic = "spearman",
    scale: Scale = "raw",
    models: Models = "independent",
    bn_mode: str = "eval",
    dataset: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """Which protocol predicts the target better than which other one, tested as such.

    Both correlations with the target are over the same models, so that their difference is surer
    than either. Models are drawn, those of one lineage or method together, for both at once.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    target : protocol that is predicted
    protocols : that are compared; of none all others
    statistic : `pearson`, `spearman` or `kendall`
    scale, models, bn_mode : as in `correlate_protocols`
    dataset : a single one; else differences are means over the datasets that all three have
    resamples, seed : bootstrap draws of models

    Returns
    -------
    Dataset with dims (protocol, other)
        `difference` of the correlation with the target, protocol's minus other's; `low` and `high`
        of its 95 % interval, made of those of both by the jackknife and of how far they go together
        (MOVER; Zou, *Toward Using Confidence Intervals to Compare Correlations*, 2007), since
        BCa's covers 88 to 93 % with 10 to 26 models and this one 94 to 99; `p` of no difference,
        two-sided, by the standard error of the paired bootstrap, on the scale on which the
        jackknife takes the coefficient, and Student's t with one degree of freedom less than there
        are units; `p_holm`, adjusted so that of all pairs one is wrongly called different in at
        most a twentieth of studies; `n` models, `n_datasets`. With `pearson` on one dataset, also
        `p_steiger`, of Steiger's test, which takes models as independent and normal. Where three
        protocols share fewer than four models, or units, there are no numbers.

    Raises
    ------
    ValueError
        A protocol or another name does not exist, fewer than two are compared, or these are no
        results.
    """
    check_results(results, seeds=True)
    known = [str(name) for name in results["protocol"].values]
    existing("target", target, known)
    existing("statistic", statistic, STATISTICS)
    names = [existing("protocols", name, known) for name in protocols] or known
    names = [name for name in dict.fromkeys(names) if name != target]
    if len(names) < 2:
        raise ValueError(f"protocols must be two or more besides {target}, got {names}")
    results = of_models(results, models)
    scores = scores_of(results, scale=scale, bn_mode=bn_mode, dataset=dataset)
    cells = scores.sel(protocol=[*names, target]).transpose("protocol", "dataset", "model").values
    scheme = Resampling(units_of(results), "bca", resamples, seed)

    # Pairs that share their cells with the target share its draws as well.
    finite = np.isfinite(cells)
    alike = defaultdict(list)
    for i, j in combinations(range(len(names)), 2):
        alike[(finite[i] & finite[j] & finite[-1]).tobytes()].append((i, j))
    columns = ("difference", "low", "high", "p", "n", "n_datasets", "p_steiger")
    out = {key: np.full((len(names), len(names)), np.nan) for key in columns}
    for pairs in alike.values():
        for (i, j), found in _differences(cells, pairs, scheme, statistic).items():
            for key, value in found.items():
                out[key][i, j] = out[key][j, i] = value
            out["difference"][j, i] *= -1
            out["low"][j, i], out["high"][j, i] = -out["high"][i, j], -out["low"][i, j]
    upper = np.triu_indices(len(names), 1)
    adjusted = np.full((len(names), len(names)), np.nan)
    adjusted[upper] = adjusted.T[upper] = holm(out["p"][upper])
    if statistic != "pearson" or scores.sizes["dataset"] > 1:
        del out["p_steiger"]
    told = {"target": target, "statistic": statistic, "scale": scale, "models": models}
    return xr.Dataset(
        {
            key: (("protocol", "other"), square)
            for key, square in (out | {"p_holm": adjusted}).items()
        },
        {"protocol": names, "other": names} | transductive(results.sel(protocol=names), bn_mode),
        told | {"bn_mode": bn_mode, "resamples": resamples, "seed": seed},
    )


def _differences(
    cells: Floats, pairs: Sequence[tuple[int, int]], scheme: Resampling, statistic: Statistic
) -> dict[tuple[int, int], dict[str, float]]:
    """Numbers of pairs of protocols that have the same cells in common with the target.

    Cells are (protocol, dataset, model), those of the target last.
    """
    i, j = pairs[0]
    there = np.isfinite(cells[[i, j, -1]]).all(axis=0)
    used = np.unique(pairs)
    first = np.array([*used, *(a for a, _ in pairs)])
    second = np.array([len(cells) - 1] * len(used) + [b for _, b in pairs])
    single = coefficients(np.where(there, cells, np.nan), first, second)
    enough = np.asarray(np.isfinite(single[statistic][: len(used)]).all(axis=0))
    present = scheme.present(np.asarray((there & enough[:, None]).any(axis=0)))
    told = {"n": float(single["n"].max(initial=0)), "n_datasets": float(enough.sum())}
    if np.count_nonzero(present) < FEWEST_MODELS:
        return dict.fromkeys(pairs, told)
    told["n"] = float(single["n"][0, enough].min())
    cells = np.where(there, cells, np.nan)
    given = np.tile(enough, (len(used), 1))
    r = single[statistic][:, enough].mean(axis=1)
    again = mean_correlations(
        cells, used, second[: len(used)], scheme.weights, given, statistics=[statistic]
    )[statistic]
    most = _NEAR_ONE if statistic == "pearson" else 1.0
    z, moved = (stabilised(np.clip(one, -most, most), statistic) for one in (r, again))
    drawn = moved[:, : scheme.resamples]
    without = np.where(present, again[:, scheme.resamples :], np.nan)
    ends = jackknife(r[: len(used)], without, statistic=statistic)
    place = {int(one): number for number, one in enumerate(used)}
    found = {}
    for number, (i, j) in enumerate(pairs):
        a, b = place[i], place[j]
        apart = np.asarray(r[a] - r[b])
        together = _correlation(moved[[a, b], scheme.resamples :][:, present])
        low, high = _mover(r[[a, b]], ends[0][[a, b]], ends[1][[a, b]], together)
        error = np.nanstd(drawn[a] - drawn[b])
        size = abs(z[a] - z[b]) / error if error else 0.0 if z[a] == z[b] else np.inf
        p = 2 * t.sf(size, np.count_nonzero(present) - 1)
        found[i, j] = told | {
            "difference": float(apart), "low": float(low), "high": float(high), "p": float(p)
        }  # fmt: skip
        if statistic == "pearson" and enough.sum() == 1:
            between = r[len(used) + number]
            found[i, j]["p_steiger"] = float(steiger(r[a], r[b], between, int(told["n"]))[1])
    return found


def _correlation(without: Floats) -> float:
    """How two coefficients go together, (2, unit) of what each is without a unit."""
    known = without[:, np.isfinite(without).all(axis=0)]
    return float(np.nan_to_num(pearson(known[0], known[1])))


def _mover(r: Floats, low: Floats, high: Floats, together: float) -> tuple[float, float]:
    """Limits of r[0] - r[1], of those of each (2,) and the correlation of both estimates."""
    below, above = r - low, high - r
    down = below[0] ** 2 + above[1] ** 2 - 2 * together * below[0] * above[1]
    up = above[0] ** 2 + below[1] ** 2 - 2 * together * above[0] * below[1]
    apart = float(r[0] - r[1])
    return apart - float(np.sqrt(max(down, 0.0))), apart + float(np.sqrt(max(up, 0.0)))
