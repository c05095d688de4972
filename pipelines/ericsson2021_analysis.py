"""What Ericsson et al. found, from the numbers they printed: nothing is extracted or trained.

    python pipelines/ericsson2021_analysis.py [--out data/ericsson2021_analysis]

How well ImageNet accuracy predicts every dataset, setting and task over their 14 models, how task
groups go together, who leads where, and the coefficients of their table 9 beside those printed
there (arXiv:2011.13377v2). Shares are compared as logits, angular errors negated, colour errors as
they are; a group's value is the mean of its datasets' logits. Figures, tables as CSV and a page in
Markdown go to --out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ericsson2021_figures as figures
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure
from scipy.special import expit

import featstore

HOME = "reported-linear"
"""Protocol of the predictor: top-1 on ImageNet as each method reported it."""

CDFSL = ("crop_diseases", "eurosat", "isic2018", "chestx")

# Task group: protocol, and the datasets if not all that have its score.
GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ImageNet": (HOME, ()),
    "many-shot, linear": ("logreg-ericsson", ()),
    "many-shot, fine-tuned": ("finetune-ericsson", ()),
    "few-shot, natural": ("fewshot-20shot-ericsson", ()),
    "few-shot, CD-FSL": ("fewshot-20shot-ericsson", CDFSL),
    "detection, frozen": ("detection-frozen", ()),
    "detection, fine-tuned": ("detection-finetune", ()),
    "surface normals": ("normals-frozen", ()),
    "segmentation": ("segmentation-finetune", ()),
}

# Row of table 9: protocol, metric, and the coefficient that is printed there.
TABLE_9: dict[str, tuple[str, str, float]] = {
    "ECE, linear": ("logreg-ericsson", "ece", -0.77),
    "ECE, linear, temperature-scaled": ("logreg-ericsson", "ece_scaled", -0.59),
    "ECE, fine-tuned": ("finetune-ericsson", "ece", -0.90),
    "ECE, fine-tuned, temperature-scaled": ("finetune-ericsson", "ece_scaled", -0.59),
    "LPIPS, AlexNet": ("reconstruction", "lpips_alexnet", -0.51),
    "LPIPS, VGG": ("reconstruction", "lpips_vgg", -0.69),
    "LPIPS, SqueezeNet": ("reconstruction", "lpips_squeezenet", -0.57),
    "MSE, red": ("reconstruction", "mse_red", -0.56),
    "MSE, green": ("reconstruction", "mse_green", -0.11),
    "MSE, blue": ("reconstruction", "mse_blue", -0.22),
    "attentive diffusion": ("occlusion", "attentive_diffusion", 0.09),
}

_DENSE = {  # metrics beside the headline, where a task has several
    "detection-frozen": ("ap", "ap50", "ap75"),
    "detection-finetune": ("ap", "ap50", "ap75"),
    "normals-frozen": (
        *("mean_angular_error", "median_angular_error"),
        *("within_11_25", "within_22_5", "within_30"),
    ),
    "segmentation-finetune": ("miou", "pixel_accuracy"),
}


def with_imagenet(
    tables: xr.Dataset, protocol: str, metric: str = "score", dataset: str | None = None
) -> pd.DataFrame:
    """Correlations over models of ImageNet top-1 with a metric, a row for each dataset."""
    found = featstore.correlate_domains(
        tables.sel(protocol=list(dict.fromkeys((HOME, protocol)))),
        across=True, metric="score", target_metric=metric, scale="logit",
    )  # fmt: skip
    found = found.sel(protocol=HOME, other=protocol)
    names = [f"{one}{end}" for one in ("pearson", "spearman") for end in ("", "_low", "_high")]
    frame = found[[*names, "n"]].to_dataframe()[[*names, "n"]].dropna(subset=["pearson"])
    if tables[metric].attrs["units"] == "degrees":  # an error: negated, so that more is better
        frame = flipped(frame)
    return frame if dataset is None else frame.loc[[dataset]]


def flipped(frame: pd.DataFrame) -> pd.DataFrame:
    """Coefficients of the negated variable: limits change places."""
    out = frame.copy()
    for name in ("pearson", "spearman"):
        out[name] = -frame[name]
        out[f"{name}_low"], out[f"{name}_high"] = -frame[f"{name}_high"], -frame[f"{name}_low"]
    return out


def table_9(tables: xr.Dataset) -> pd.DataFrame:
    """Coefficients of table 9 as they follow from its columns, beside those printed."""
    rows = {
        name: with_imagenet(tables, protocol, metric, "mean-of-recognition").iloc[0]
        for name, (protocol, metric, _) in TABLE_9.items()
    }
    frame = pd.DataFrame(rows).T
    return frame.assign(printed=[printed for *_, printed in TABLE_9.values()])


def every_setting(tables: xr.Dataset) -> pd.DataFrame:
    """Correlations of ImageNet top-1 with every metric of every setting on every dataset."""
    parts = []
    for protocol in [str(one) for one in tables["protocol"].values]:
        if not tables["score"].sel(protocol=protocol).notnull().any() or protocol == HOME:
            continue
        for metric in _DENSE.get(protocol, ("score",)):
            part = with_imagenet(tables, protocol, metric).reset_index()
            headlines = tables["headline"].sel(protocol=protocol, dataset=part["dataset"].values)
            told = headlines.values if metric == "score" else metric
            parts.append(part.assign(protocol=protocol, metric=told))
    frame = pd.concat(parts, ignore_index=True)
    return frame.set_index(["protocol", "dataset", "metric"])


def grouped(tables: xr.Dataset) -> xr.Dataset:
    """Each task group's value as a protocol of its own: the mean of logits over its datasets.

    Surface normals count by their mean angular error, negated, as in the paper.
    """
    cells = tables.sel(bn_mode="eval")
    columns = {}
    for name, (protocol, datasets) in GROUPS.items():
        one = cells.sel(protocol=protocol, drop=True)
        if protocol == "normals-frozen":
            columns[name] = -one["mean_angular_error"].sel(dataset="nyuv2_normals")
            continue
        chosen = list(datasets) or [str(d) for d in one["dataset"].values if d not in CDFSL]
        share = one["score"].sel(dataset=chosen)
        columns[name] = np.log(share / (1 - share)).mean("dataset")
    of_models = [name for name in tables.coords if tables[name].dims == ("model",)]
    keep = tables.drop_vars([name for name in tables.coords if name not in of_models])
    values = np.stack([one.values for one in columns.values()], axis=-1)
    return xr.Dataset(
        {"score": (("model", "dataset", "bn_mode", "protocol"), values[:, None, None, :])},
        dict(keep.coords) | {
            "dataset": ["mean of logits"], "bn_mode": ["eval"], "protocol": list(columns),
            "scale": ("protocol", ["real"] * len(columns)),
        },
    )  # fmt: skip


def ranking(groups: xr.Dataset) -> pd.DataFrame:
    """Places of the methods in each task group, best mean place first; 1 is the best."""
    values = groups["score"].squeeze(["dataset", "bn_mode"]).to_pandas()
    places = values.rank(ascending=False).set_axis(groups["method"].values)
    tasks = places.drop(columns="ImageNet")
    return places.assign(mean=tasks.mean(axis=1)).sort_values("mean")


def as_percent(groups: xr.Dataset) -> pd.DataFrame:
    """Groups' values (model, group) in percent, the mean logit's share; degrees of normals."""
    values = groups["score"].squeeze(["dataset", "bn_mode"]).to_pandas()
    shares = 100 * values.apply(expit)
    return shares.assign(**{"surface normals": -values["surface normals"]})


def beats_supervision(tables: xr.Dataset) -> dict[str, tuple[int, int]]:
    """On how many datasets of a group a self-supervised model beats supervision, of how many."""
    supervised = (tables["paradigm"] == "supervised").values
    found = {}
    for name, (protocol, datasets) in GROUPS.items():
        cells = tables["score"].sel(bn_mode="eval", protocol=protocol).dropna("dataset", how="all")
        chosen = list(datasets) or [str(d) for d in cells["dataset"].values if d not in CDFSL]
        cells = cells.sel(dataset=chosen)
        won = cells.isel(model=~supervised).max("model") > cells.isel(model=supervised).max("model")
        found[name] = int(won.sum()), len(chosen)
    return found


@dataclass(frozen=True)
class Section:
    """A part of the page: numbers, the same as a person reads them, and a figure."""

    heading: str
    words: str
    numbers: pd.DataFrame
    shown: pd.DataFrame
    figure: tuple[str, Figure] | None = None


def sections(tables: xr.Dataset) -> Iterator[Section]:
    """Every part of the analysis."""
    eleven = table_9(tables)
    agree = int((eleven["pearson"].round(2) == eleven["printed"]).sum())
    yield Section(
        "The coefficients of table 9",
        f"Pearson's r with ImageNet top-1 over 14 models. {agree} of {len(eleven)} are the printed "
        "ones to their last digit; the others come within what rounding of the printed inputs can "
        "move.",
        eleven,
        readable(eleven),
    )
    groups = grouped(tables)
    percent, places = as_percent(groups), ranking(groups)
    found = featstore.correlate_protocols(groups, by_dataset=False)
    with_home = found.sel(protocol="ImageNet", drop=True).to_dataframe().drop("ImageNet")
    yield Section(
        "Task groups against ImageNet",
        "A point is a model; percent are of the mean logit over the group's datasets.",
        with_home,
        readable(with_home),
        ("imagenet", figures.against_imagenet(groups, percent, found)),
    )
    square = found["pearson"].to_pandas()
    yield Section(
        "How task groups go together",
        "Pearson's r over models.",
        square,
        square.map(written),
        ("groups", featstore.correlation_map(found).figure),
    )
    won = "; ".join(
        f"{name} {many} of {of}"
        for name, (many, of) in beats_supervision(tables).items()
        if name != "ImageNet"
    )
    yield Section(
        "Who leads where",
        "Places of the models, 1 is the best; `mean` leaves ImageNet out. Datasets on which a "
        f"self-supervised model beats supervision: {won}.",
        places,
        places.map(lambda place: f"{place:.3g}"),
        ("places", figures.placed(places).figure),
    )
    settings = every_setting(tables)
    yield Section(
        "Every dataset and setting against ImageNet",
        "On logits; angular errors negated, so that more is better.",
        settings,
        readable(settings),
        ("settings", figures.with_intervals(settings)),
    )


def written(value: float) -> str:
    """A coefficient with two decimals."""
    return "" if np.isnan(value) else f"{round(value, 2) + 0:.2f}"


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Coefficients with their intervals, as text."""
    out = {}
    for name, title in (("pearson", "Pearson's r"), ("spearman", "Spearman's rho")):
        value, low, high = (frame[f"{name}{end}"].map(written) for end in ("", "_low", "_high"))
        out[title] = value + " [" + low + ", " + high + "]"
    if "printed" in frame:
        out["printed"] = frame["printed"].map(written)
    return pd.DataFrame(out)


def in_markdown(table: pd.DataFrame) -> str:
    """A table of text as Markdown."""
    table = table.reset_index(names=list(table.index.names) if table.index.nlevels > 1 else [""])
    rows = [[str(name) for name in table.columns], ["---"] * table.shape[1], *table.values.tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def main() -> None:
    """Print every table; write page, figures and CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("data/ericsson2021_analysis"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    tables = featstore.published("ericsson2021")
    page = [f"# {tables.attrs['title']}\n", f"Numbers: {tables.attrs['source']}.\n"]
    for one in sections(tables):
        shown = one.shown.rename_axis(index=[None] * one.shown.index.nlevels, columns=None)
        print(f"{one.heading}\n{one.words}\n\n{shown.to_string()}\n", flush=True)
        one.numbers.to_csv(out / f"{one.heading.lower().replace(' ', '-')}.csv")
        page += [f"## {one.heading}\n", f"{one.words}\n"]
        if one.figure:
            name, figure = one.figure
            figures.write(figure, out / name)
            page.append(f"![{one.heading}]({name}.svg)\n")
        page.append(in_markdown(one.shown))
    (out / "analysis.md").write_text("\n".join(page), encoding="utf-8")
    print(f"wrote {out / 'analysis.md'}, figures and tables beside it")


if __name__ == "__main__":
    main()
