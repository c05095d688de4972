"""Which models have alike features, and how far BatchNorm's mode moves those of one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from featstore.analysis.resampling import Floats, mean_interval, units_of
from featstore.analysis.selection import ENDS, Models, is_independent
from featstore.analysis.style import (
    FAINT,
    INK,
    PAPER,
    family_colours,
    ink_on,
    literal,
    without_frame,
)

_MOST_WRITTEN = 40  # models; with more, numbers in cells could not be read


def similarity_map(
    found: xr.Dataset,
    *,
    dataset: str | None = None,
    bn_mode: str = "eval",
    ax: Axes | None = None,
) -> Axes:
    """Debiased linear CKA of every two models' features, with a dash where nothing was compared.

    Models stand in the order of a hierarchical clustering (average linkage of 1 - CKA), so that
    alike ones are neighbours. The mark beside a name has the colour of the model's family.

    Parameters
    ----------
    found : Dataset with dims (dataset, model, bn_mode, other, other_mode), of `open_similarity()`
    dataset : one dataset; by default the mean over those on which both models were compared
    bn_mode : of both models

    Raises
    ------
    ValueError
        The dataset or the BN mode does not exist, or no model was compared in it.
    """
    _check(found, "bn_mode", bn_mode)
    cka = found["cka"].sel(bn_mode=bn_mode, other_mode=bn_mode)
    if dataset is None:
        cka = cka.mean("dataset")
    else:
        _check(found, "dataset", dataset)
        cka = cka.sel(dataset=dataset)
    values = cka.transpose("model", "other").values
    there = np.flatnonzero(np.isfinite(values).any(axis=1))
    if not len(there):
        where = dataset or "any dataset"
        raise ValueError(f"no model was compared in BN mode {bn_mode} on {where}")
    order = there[_clustered(values[np.ix_(there, there)])]
    values, shown = values[np.ix_(order, order)], found.isel(model=order)

    count = len(order)
    if ax is None:
        side = max(3.2, (0.31 if count <= _MOST_WRITTEN else 0.2) * count)
        room = 0.3 + 0.065 * max(len(str(name)) for name in shown["model"].values)  # of a name
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
        figure = Figure((side + room + 1.3, side + room + 0.6), layout=layout)
        ax = figure.add_subplot()
    image = ax.imshow(values, cmap="YlGnBu", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(values):
        if count > _MOST_WRITTEN:
            break
        known = np.isfinite(value)
        text = f"{value:.2f}".replace("-", "−").replace("0.", ".") if known else "–"
        colour = ink_on(image.cmap(image.norm(value))) if known else FAINT
        ax.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    _label(ax, shown)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.6, aspect=30, pad=0.02)
    bar.set_label("linear CKA, debiased", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, color=FAINT, labelcolor=INK)
    bar.outline.set_visible(False)
    return ax


def bn_displacement(
    found: xr.Dataset,
    *,
    baseline: str = "eval",
    models: Models = "independent",
) -> xr.Dataset:
    """How far each other BN mode of the backbone moves the features of models that have BatchNorm.

    Per model, means over datasets; then means over models, with their 95 % intervals over models.

    Parameters
    ----------
    found : Dataset with dims (dataset, model, bn_mode, other, other_mode), of `open_similarity()`
    baseline : BN mode that features are moved from
    models : whose mean is taken; "independent" leaves out early checkpoints and random weights

    Returns
    -------
    Dataset with dims (bn_mode, model), of all modes but the baseline and all models with BatchNorm
        `cka`, debiased, between the features in both modes: 1 where they are moved as a whole,
        turned or scaled at most; `displacement`, the distance between the same images' features
        over the spread of those at the baseline, which counts that as well; `n_datasets`. Over
        models, with the one dim bn_mode: `cka_mean`, `cka_mean_low`, `cka_mean_high`, the same of
        `displacement`, and `n_models`. The interval is NaN of fewer than four models.

    Raises
    ------
    ValueError
        The baseline or the choice of models does not exist.
    """
    _check(found, "bn_mode", baseline)
    if models not in ("independent", "all"):
        raise ValueError(f"models must be one of independent, all, got {models!r}")
    found = found.isel(model=np.flatnonzero(~found["bn_free"].values.astype(bool)))
    every = np.ones(found.sizes["model"], dtype=bool)
    chosen = is_independent(found).values.astype(bool) if models == "independent" else every
    names = found["model"]
    own = found[["cka", "displacement"]].sel(bn_mode=baseline, drop=True)
    own = own.sel(model=names, other=names).drop_vars("other")  # each model with itself
    own = own.rename(other_mode="bn_mode").transpose("dataset", "bn_mode", "model")
    own = own.sel(bn_mode=[mode for mode in own["bn_mode"].values if mode != baseline])

    out = own.mean("dataset").assign(n_datasets=own["cka"].notnull().sum("dataset"))
    for name in ("cka", "displacement"):
        means = [
            mean_interval(np.where(chosen, row, np.nan), units_of(found))
            for row in out[name].values
        ]
        columns = np.array(means, dtype=float).reshape(-1, 3).T
        for end, column in zip(ENDS, columns, strict=True):
            out[f"{name}_mean{end}"] = ("bn_mode", column)
    out["n_models"] = (out["cka"].notnull() & chosen).sum("model")
    return out.assign_attrs(baseline=baseline, models=models)


def _clustered(cka: Floats) -> npt.NDArray[np.intp]:
    """Order of models (m, m) in which alike ones are neighbours; what is not known is not alike."""
    if len(cka) < 3:
        return np.arange(len(cka))
    far = 1 - np.nan_to_num(cka)
    tree = linkage(squareform(far, checks=False), method="average", optimal_ordering=True)
    return np.asarray(leaves_list(tree))


def _label(ax: Axes, shown: xr.Dataset) -> None:
    """Names on the left and on top, and a mark in the colour of each family."""
    names = [literal(str(name)) for name in shown["model"].values]
    places = range(len(names))
    ax.set_yticks(places, names)
    ax.set_xticks(places, names, rotation=60, ha="left", rotation_mode="anchor")
    ax.xaxis.tick_top()
    without_frame(ax)
    ax.tick_params(pad=11, labelsize=8)
    ax.set_facecolor(PAPER)
    colours = family_colours(shown)
    marks = [colours[str(family)] for family in shown["family"].values]
    edge, start = np.zeros(len(names)), np.ones(len(names))
    inch = ax.figure.dpi_scale_trans
    left = ax.get_yaxis_transform() + ScaledTranslation(-0.1, 0, inch)
    above = ax.get_xaxis_transform() + ScaledTranslation(0, 0.1, inch)
    for x, y, place in ((edge, places, left), (places, start, above)):
        ax.scatter(x, y, c=marks, marker="s", s=20, transform=place, clip_on=False)
    limits = (-0.5, len(names) - 0.5)
    ax.set(xlim=limits, ylim=limits[::-1])
    handles = [
        Line2D([], [], color=colour, marker="s", linestyle="", markersize=5, label=family or "none")
        for family, colour in colours.items()
    ]
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, -0.01),
        ncols=4,
        frameon=False,
        fontsize=8,
        handletextpad=0.1,
        columnspacing=1,
    )


def _check(found: xr.Dataset, dim: str, name: str) -> None:
    if name not in found[dim].values:
        known = ", ".join(map(str, found[dim].values))
        raise ValueError(f"{dim} must be one of {known}, got {name!r}")
