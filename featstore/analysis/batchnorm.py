"""What BatchNorm changes: that of the backbone, and a normalisation before the head."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import xarray as xr

from featstore.analysis.coefficients import coefficients, mean_correlations
from featstore.analysis.compare import mean, moves, only
from featstore.analysis.resampling import Bools, Floats, Indices, Resampling, units_of
from featstore.analysis.selection import (
    ENDS,
    Models,
    existing,
    of_models,
    reference_of,
    shares,
    transductive,
)
from featstore.results import check_results

AMONG = ("all", "batchnorm", "bn_free")
"""Models that a mean is over: all, those with BatchNorm in the backbone, those without."""

_COLUMNS = (
    *(
        f"{k}{end}"
        for k in ("difference", "spearman", "places", "agreement_change")
        for end in ENDS
    ),
    *("agreement_before", "agreement_after", "n_models", "n_ranked", "n_datasets"),
)
_OF_HEAD = (*(name for name in _COLUMNS if name != "n_ranked"), "n_pairs")


def backbone_bn(
    results: xr.Dataset,
    *,
    reference: str | None = None,
    models: Models = "independent",
) -> xr.Dataset:
    """What changes with the statistics that the backbone's BatchNorm uses, for each protocol.

    A change is BN mode `batch` or `adapt` instead of `eval`; and `train`, where the protocol has a
    twin that differs only in having `backbone_bn` train instead of frozen, as
    `linear-marks-literal` is to `linear-marks`. Only cells count that are there on both sides.

    Scores change for models with BatchNorm alone, so `difference` is theirs. Rankings are of all
    models, since one chooses among all: a model without BatchNorm keeps its score, but others pass
    it, and it moves as well.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    reference : protocol with which agreement is measured; by default the first linear one
    models : "independent" leaves out early checkpoints and random weights

    Returns
    -------
    Dataset with dims (change, protocol), where `protocol` is the one before the change
        Each of the following, and the limits `_low` and `_high` of its 95 % interval over models:
        `difference` of the score, mean over models of their means over datasets, NaN where scores
        are no shares; `spearman`, of the scores before with those after, mean over datasets;
        `places` that a model moves, up or down, mean as of `difference`; `agreement_change`, of
        the protocol's Spearman correlation with the reference, mean over datasets. Besides,
        `agreement_before` and `agreement_after`, `n_models` with BatchNorm, `n_ranked` models,
        `n_datasets`. In a BN mode in which the reference has no cell of a model with BatchNorm,
        as a fine-tuning, its cells in `eval` are taken. The coordinate `after` (change, protocol)
        is the protocol after the change, "" where there is none, and the coordinate `transductive`
        (change, protocol) says whether scored images take part in a statistic after it.

    Raises
    ------
    ValueError
        The reference or the choice of models does not exist; `results` are none.
    """
    check_results(results, "bn_free", "kind")
    results = of_models(results, models)
    modes = [str(mode) for mode in results["bn_mode"].values]
    protocols = [str(name) for name in results["protocol"].values]
    reference = reference_of(results, reference, "eval" if "eval" in modes else modes[0])
    score = results["score"].transpose("bn_mode", "protocol", "dataset", "model").values
    by_mode = dict(zip(modes, score, strict=True))
    with_bn = ~results["bn_free"].values.astype(bool)
    before = by_mode.pop("eval", np.full(score.shape[1:], np.nan))
    home = before[protocols.index(reference)]

    changes = []
    for mode, after in by_mode.items():
        own = after[protocols.index(reference)]
        there = np.isfinite(own[:, with_bn]).any()
        changes.append((mode, after, own if there else home, protocols))
    twin = dict(reversed(_twins(results, "backbone_bn", ("frozen",), ("train",))))  # the first wins
    if twin:
        after, names = np.full_like(before, np.nan), [""] * len(protocols)
        for frozen, trained in twin.items():
            after[frozen], names[frozen] = before[trained], protocols[trained]
        changes.append(("train", after, home, names))

    columns = {name: np.full((len(changes), len(protocols)), np.nan) for name in _COLUMNS}
    scheme = Resampling(units_of(results))
    for row, (_, after, own, names) in enumerate(changes):
        there = np.isfinite(before) & np.isfinite(after)
        there &= (there & with_bn).any(axis=2, keepdims=True)  # where something can change
        found = moves(only(there, before), only(there, after), with_bn, scheme)
        there &= np.isfinite(home) & np.isfinite(own)
        there[[reference in pair for pair in zip(protocols, names, strict=True)]] = False
        sides = [only(there, one) for one in (before, home, after, own)]
        found |= _agreements(sides[0], sides[1], sides[2], sides[3], scheme)
        for name, column in columns.items():
            column[row] = found[name]
    can_average = {str(name) for name in shares(results)["protocol"].values}
    for end in ENDS:
        columns[f"difference{end}"][:, [name not in can_average for name in protocols]] = np.nan
    became = np.array([names for *_, names in changes], dtype=str)
    marks = {mode: dict(zip(protocols, _marks(results, mode), strict=True)) for mode in modes}
    sees = [
        [marks.get(mode if mode in by_mode else "eval", {}).get(one, False) for one in names]
        for mode, *_, names in changes
    ]
    dims = ("change", "protocol")
    return xr.Dataset(
        {name: (dims, column) for name, column in columns.items()},
        {
            "change": [name for name, *_ in changes],
            "protocol": protocols,
            "after": (dims, became.reshape(len(changes), len(protocols))),
            "transductive": (dims, np.array(sees, bool).reshape(len(changes), len(protocols))),
        },
        {"reference": reference, "models": models},
    )


def head_bn(
    results: xr.Dataset,
    *,
    reference: str | None = None,
    bn_mode: str = "eval",
    models: Models = "independent",
) -> xr.Dataset:
    """What a normalisation before the head changes: protocols that differ in nothing else.

    Such a pair is one with `normalisation` none or l2, and one with zscore, zscore-own or bn, and
    with scores that are shares.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    reference : protocol with which agreement is measured; by default the first linear one
    bn_mode : of the backbone, the one looked at
    models : "independent" leaves out early checkpoints and random weights

    Returns
    -------
    Dataset with dims (kind, change, among)
        `kind` of protocol, `change` such as "none to zscore", `among` of `AMONG`, which rankings
        are among as well. Each of the following, and the limits `_low` and `_high` of its 95 %
        interval over models, NaN of fewer than four: `difference` of the score and `places` that a
        model moves, up or down, means over models of their means over pairs and datasets;
        `spearman`, of the scores before with those after, and `agreement_change`, of Spearman's
        correlation with the reference, means over pairs and datasets. Besides,
        `agreement_before` and `agreement_after`, both without pairs that the reference is one of;
        `n_models`, `n_datasets`, `n_pairs`; and `transductive` (kind, change): whether what it
        changes to sees all test images at once. The same for each pair of protocols has the dims
        (pair, among): `difference_by_pair`, `n_models_by_pair`, ..., and `transductive_by_pair`
        (pair), with the coordinates `before` and `after` (protocols), `pair_kind` and
        `pair_change`.

    Raises
    ------
    ValueError
        The reference, the BN mode or the choice of models does not exist; `results` are none.
    """
    check_results(results, "bn_free", "kind")
    results = of_models(results, models)
    scheme = Resampling(units_of(results))
    existing("bn_mode", bn_mode, results["bn_mode"].values)
    reference = reference_of(results, reference, bn_mode)
    own = results["score"].sel(bn_mode=bn_mode, protocol=reference)
    home = own.transpose("dataset", "model").values
    cells = shares(results).sel(bn_mode=bn_mode)
    score = cells["score"].transpose("protocol", "dataset", "model").values
    with_bn = ~cells["bn_free"].values.astype(bool)
    among = (np.ones_like(with_bn), with_bn, ~with_bn)
    protocols, normalisation, kinds = (
        [str(one) for one in cells[name].values] if name in cells.coords else []
        for name in ("protocol", "normalisation", "kind")
    )
    pairs = _twins(cells, "normalisation", ("none", "l2"), ("zscore", "zscore-own", "bn"))
    of_pair = [(kinds[a], f"{normalisation[a]} to {normalisation[b]}") for a, b in pairs]
    axes = [list(dict.fromkeys(axis)) for axis in zip(*of_pair, strict=True)] or [[], []]
    earlier, later = np.array(pairs, dtype=int).reshape(-1, 2).T
    apart = np.array([reference not in (protocols[a], protocols[b]) for a, b in pairs], bool)
    sees = _marks(shares(results), bn_mode)[later]

    def means(groups: Indices) -> dict[str, Floats]:
        """Columns (group, among) over groups (group, pair) of equally many pairs."""
        sides, told = (score[earlier[groups]], score[later[groups]]), apart[groups]
        found = [_mean_change(*sides, home, told, one, scheme) for one in among]
        return {
            name: np.stack([one[name] for one in found], axis=1).astype(float) for name in _OF_HEAD
        }

    groups = [
        [number for number, place in enumerate(of_pair) if place == (kind, change)]
        for kind in axes[0]
        for change in axes[1]
    ]
    single = means(np.arange(len(pairs))[:, None])
    each = [means(np.array([group], dtype=int)) for group in groups]
    shape = len(axes[0]), len(axes[1])
    whole = {
        name: np.reshape([one[name] for one in each], (*shape, len(AMONG))) for name in _OF_HEAD
    }
    marked = [bool(sees[group].any()) for group in groups]
    return xr.Dataset(
        {name: (("kind", "change", "among"), column) for name, column in whole.items()}
        | {f"{name}_by_pair": (("pair", "among"), column) for name, column in single.items()}
        | {
            "transductive": (("kind", "change"), np.array(marked, bool).reshape(shape)),
            "transductive_by_pair": ("pair", sees),
        },
        {
            "kind": axes[0],
            "change": axes[1],
            "among": list(AMONG),
            "before": ("pair", [protocols[a] for a, _ in pairs]),
            "after": ("pair", [protocols[b] for _, b in pairs]),
            "pair_kind": ("pair", [kind for kind, _ in of_pair]),
            "pair_change": ("pair", [change for _, change in of_pair]),
        },
        {
            "reference": reference,
            "bn_mode": bn_mode,
            "models": models,
        },
    )


def _mean_change(
    before: Floats, after: Floats, home: Floats, apart: Bools, among: Bools,
    scheme: Resampling,
) -> dict[str, Floats]:  # fmt: skip
    """`_OF_HEAD` (group,) of scores (group, pair, dataset, model) over some of the models.

    `home` (dataset, model) is of the reference, `apart` (group, pair) whether it is in neither
    side. What is over datasets is over those of all pairs, as if they were one protocol's.
    """
    there = np.isfinite(before) & np.isfinite(after) & among
    told = there & np.isfinite(home) & apart[:, :, None, None]
    home = np.broadcast_to(home, before.shape)
    groups, pairs, datasets, models = before.shape

    def as_one(mask: Bools, *sides: Floats) -> list[Floats]:
        return [only(mask, one).reshape(groups, pairs * datasets, models) for one in sides]

    x, y = as_one(there, before, after)
    found = moves(x, y, among, scheme)
    x, h, y = as_one(told, before, home, after)
    found |= _agreements(x, h, y, h, scheme)
    found["n_datasets"] = np.count_nonzero(there.any(axis=(1, 3)), axis=1)
    found["n_pairs"] = np.count_nonzero(there.any(axis=(2, 3)), axis=1)
    return found


def _marks(results: xr.Dataset, bn_mode: str) -> Bools:
    """(protocol,) which see scored images; none where the results do not say so."""
    _, marks = transductive(results, bn_mode).get(
        "transductive", ("protocol", np.zeros(results.sizes["protocol"], bool))
    )
    return marks


def _agreements(
    before: Floats, home: Floats, after: Floats, own: Floats, scheme: Resampling
) -> dict[str, Floats]:
    """Columns (protocol,) on Spearman's correlation with the reference, before and after.

    All are (protocol, dataset, model), NaN where one of the four is missing: a draw of models then
    changes both correlations alike.
    """
    values = np.concatenate([before, home, after, own])
    count = len(before)
    first = np.arange(count)
    earlier, later = (first, count + first), (2 * count + first, 3 * count + first)
    r = [coefficients(values, *pair)["spearman"] for pair in (earlier, later)]
    given = np.isfinite(r[0]) & np.isfinite(r[1])
    out = {
        f"agreement_{name}": mean(only(given, one), 1)
        for name, one in (("before", r[0]), ("after", r[1]), ("change", r[1] - r[0]))
    }
    again = [
        mean_correlations(values, *pair, scheme.weights, given, statistics=["spearman"])["spearman"]
        for pair in (earlier, later)
    ]
    there = np.isfinite(before) & np.isfinite(home) & np.isfinite(after) & np.isfinite(own)
    present = scheme.present(np.asarray((there & given[:, :, None]).any(axis=1)))
    low, high = scheme.limits(out["agreement_change"], again[1] - again[0], present)
    return out | {"agreement_change_low": low, "agreement_change_high": high}


def _twins(
    cells: xr.Dataset, setting: str, before: Collection[str], after: Collection[str]
) -> list[tuple[int, int]]:
    """Protocols by their places, (before, after), that differ in one setting and have such values.

    None if the Dataset was made before settings were told in it.
    """
    if f"without_{setting}" not in cells.coords:
        return []
    own = [str(one) for one in cells[setting].values]
    rest = [str(one) for one in cells[f"without_{setting}"].values]
    places = range(len(own))
    return [
        (a, b)
        for a in places
        for b in places
        if own[a] in before and own[b] in after and rest[a] == rest[b]
    ]
