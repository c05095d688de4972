"""A made-up results Dataset that looks like a real study: nothing in it was measured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr

BN_MODES = ["eval", "batch", "adapt"]
PROTOCOLS = {  # kind, accuracy against the others (logits), noise
    "knn-marks": ("knn", -0.3, 0.25),
    "knn-marks-zscore": ("knn", -0.2, 0.15),
    "knn-marks-zscore-own": ("knn", -0.1, 0.2),
    "knn-dino-k10": ("knn", -0.2, 0.2),
    "knn-dino-k20": ("knn", -0.15, 0.2),
    "knn-dino-k100": ("knn", -0.4, 0.3),
    "knn-dino-k200": ("knn", -0.7, 0.45),
    "logreg": ("linear", 0.3, 0.12),
    "linear-marks-1view": ("linear", 0.2, 0.1),
    "linear-marks-1view-bn": ("linear", 0.25, 0.1),
    "ridge": ("ridge", 0.15, 0.15),
}
DATASETS = {  # shift, logit of an average model, categories, test images
    "digits": ("in-domain", 2.2, 10, 540),
    "digits-edges": ("edges", 0.6, 10, 540),
    "digits-inverted": ("inversion", 0.2, 10, 540),
    "digits-texture": ("texture", -0.5, 10, 540),
    "digits-blurred": ("blur", 1.1, 10, 540),
    "digits-rotated": ("rotation", 0.4, 10, 540),
    "faces": ("other", 0.9, 2, 60),
}
METHODS = {  # family, how good
    "supervised": ("supervised", 0.9),
    "simclr": ("contrastive", 0.6),
    "barlow": ("non-contrastive", 0.5),
    "rotation": ("pretext", -0.3),
    "mae": ("generative", 0.0),
}


def synthetic_results(seed: int = 0) -> xr.Dataset:
    """15 models x 7 datasets x 3 BN modes x 11 protocols, with some cells missing."""
    rng = np.random.default_rng(seed)
    models = []  # name, backbone, family, method, stage, quality
    for backbone, lift in (("cnn", 0.1), ("vit", -0.1)):
        for method, (family, quality) in METHODS.items():
            models.append(
                (f"{method}-{backbone}", backbone, family, method, "late", quality + lift)
            )
        models.append((f"random-{backbone}", backbone, "random", "random", "random", -1.2 + lift))
    for method in ("supervised", "simclr", "barlow"):
        family, quality = METHODS[method]
        early = (f"{method}-cnn-early", "cnn", family, method, "early", quality - 0.5)
        models.append(early)

    shape = (len(models), len(DATASETS), len(BN_MODES), len(PROTOCOLS))
    bn_free = np.array([model[1] == "vit" for model in models])
    quality = np.array([model[5] for model in models])[:, None, None, None]
    quality = quality + rng.normal(0, 0.3, (len(models), len(DATASETS), 1, 1))
    hard = np.array([entry[1] for entry in DATASETS.values()])[None, :, None, None]
    lift = np.array([entry[1] for entry in PROTOCOLS.values()])
    noise = np.array([entry[2] for entry in PROTOCOLS.values()]) * rng.normal(size=shape)
    moved = np.where(bn_free[:, None, None], 0, rng.normal(0.15, 0.1, (*shape[:2], 3)))
    moved[:, :, 0] = 0
    logits = quality + hard + lift + noise + moved[..., None]
    logits[bn_free] = logits[bn_free][:, :, :1]  # the same features under every mode
    n_test = np.array([entry[3] for entry in DATASETS.values()])[None, :, None, None]
    score = np.round(n_test / (1 + np.exp(-logits))) / n_test

    holes = np.zeros(shape, dtype=bool)
    holes[4, 3, :, 8] = holes[12, 5:, :, 10] = holes[13, 6, 1] = holes[5, 2, 2] = True
    score[holes] = np.nan
    centre = (score + 1.92 / n_test) / (1 + 3.84 / n_test)  # Wilson
    half = np.sqrt(3.84 * score * (1 - score) / n_test + 3.69 / n_test**2) / (1 + 3.84 / n_test)
    cost = rng.lognormal(0.3, 0.5, shape) * np.array([1, 1, 1, 1, 1, 1, 1, 30, 12, 13, 2]) / 4
    counts = np.broadcast_to(n_test, shape)
    dims = ("model", "dataset", "bn_mode", "protocol")
    values = {
        "score": score,
        "low": np.clip(centre - half, 0, 1),
        "high": np.clip(centre + half, 0, 1),
        "top1": score,
        "top5": np.sqrt(score),
        "mean_per_class": score - 0.01 * (score > 0.05),
        "ece": (1 - score) / 4,
        "n_train": counts * 0.2,
        "n_test": counts,
        "n_skipped": counts * 0,
        "n_seeds": counts * 0 + 1,
        "seconds": cost,
    }
    transductive = np.zeros((len(BN_MODES), len(PROTOCOLS)), dtype=bool)
    transductive[1] = transductive[:, 2] = True
    columns = [*zip(*models, strict=True)]
    seen = np.zeros(shape[:2], dtype=bool)
    seen[:, 0] = True
    return xr.Dataset(
        {name: (dims, np.where(holes, np.nan, value)) for name, value in values.items()}
        | {"transductive": (dims[2:], transductive)},
        coords={
            "model": list(columns[0]),
            "dataset": list(DATASETS),
            "bn_mode": BN_MODES,
            "protocol": list(PROTOCOLS),
            "backbone": ("model", list(columns[1])),
            "family": ("model", list(columns[2])),
            "method": ("model", list(columns[3])),
            "stage": ("model", list(columns[4])),
            "lineage": ("model", [f"{model[3]}-{model[1]}" for model in models]),
            "bn_free": ("model", bn_free),
            "shift": ("dataset", [entry[0] for entry in DATASETS.values()]),
            "metric": ("dataset", ["top1"] * len(DATASETS)),
            "n_categories": ("dataset", [entry[2] for entry in DATASETS.values()]),
            "kind": ("protocol", [entry[0] for entry in PROTOCOLS.values()]),
            "seen_in_pretraining": (("model", "dataset"), seen),
        },
        attrs={
            "title": "tiny study (made-up numbers)",
            "featstore_version": "0.1.0",
            "created": "2026-11-21T12:00:00+00:00",
        },
    )


STUDY = {  # kind, scale, normalisation, backbone_bn, overconfidence or None, seconds
    "knn-marks": ("knn", "share", "none", "", 0.05, 2),
    "knn-marks-zscore": ("knn", "share", "zscore", "", 0.02, 2),
    "knn-marks-zscore-own": ("knn", "share", "zscore-own", "", 0.04, 2),
    "logreg": ("linear", "share", "none", "", 0.01, 30),
    "logreg+normalisation=zscore": ("linear", "share", "zscore", "", 0.03, 30),
    "ncm": ("prototype", "share", "none", "", None, 0.1),
    "fewshot": ("fewshot", "share", "none", "", None, 9),
    "fewshot+normalisation=zscore": ("fewshot", "share", "zscore", "", None, 9),
    "logme": ("statistic", "real", "none", "", None, 0.2),
    "rankme": ("statistic", "real", "none", "", None, 0.1),
    "linear-marks": ("linear", "share", "none", "frozen", 0.02, 4000),
    "linear-marks-literal": ("linear", "share", "none", "train", 0.06, 4000),
    "finetune-marks": ("finetune", "share", "none", "train", 0.1, 20000),
    "finetune-marks-bn": ("finetune", "share", "bn", "train", 0.12, 20000),
}


def synthetic_study(
    seed: int = 0, *, n_bn: int = 6, n_free: int = 3, n_datasets: int = 3, times: int = 1
) -> xr.Dataset:
    """A study with what records say of protocols, of calibration and of fine-tuning.

    The Dataset is as `open_results` makes it. `times` repeats every protocol with another k.
    """
    rng = np.random.default_rng(seed)
    names, columns, stem = [], [], {}
    for n in range(times):
        for name, facts in STUDY.items():
            names.append(name + f"+k={n}" * (n > 0))
            columns.append(facts)
            stem[names[-1]] = name.partition("+")[0].removesuffix("-own") + f" {n}"
    kind, scale, normalisation, backbone_bn, over, cost = zip(*columns, strict=True)
    n_models, count = n_bn + n_free, len(names)
    shape = (n_models, n_datasets, len(BN_MODES), count)
    bn_free = np.arange(n_models) >= n_bn

    logits = rng.normal(0.4, 0.8, (n_models, 1, 1, 1)) + rng.normal(0, 0.4, (1, n_datasets, 1, 1))
    logits = logits + rng.normal(0, 0.3, (n_models, n_datasets, 1, count))
    moved = rng.normal(0.1, 0.2, shape) * ~bn_free[:, None, None, None]
    logits = logits + moved * (np.arange(3) > 0)[:, None]
    share = 1 / (1 + np.exp(-logits))
    score = np.where(np.array(scale) == "share", share, 40 * logits - 7)
    in_loop = np.array(backbone_bn) != ""
    gone = np.zeros(shape, bool)
    gone[np.ix_(~bn_free, range(n_datasets), [1, 2], in_loop)] = True  # they stand under eval

    right = np.clip(share[..., None] + rng.uniform(-0.3, 0.3, (*shape, 200)), 0.05, 0.99)
    bias = np.array([0.0 if one is None else one for one in over])[:, None]
    confidence = np.clip(right + bias, 0.1, 1)
    place = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    held = np.stack([place == b for b in range(15)], axis=-2)
    hit = rng.random(right.shape) < right
    hits = (held * hit[..., None, :]).sum(axis=-1)
    sums = (held * confidence[..., None, :]).sum(axis=-1)
    n = held.sum(axis=-1)
    some = np.where(n > 0, n, np.nan)
    ece = np.abs(hits - sums).sum(axis=-1) / 200

    share_of = np.array([one is not None for one in over])
    rescaled = share_of & (np.array(kind) != "knn")
    values = {
        "score": score,
        "low": np.where(np.array(scale) == "share", score - 0.02, np.nan),
        "high": np.where(np.array(scale) == "share", score + 0.02, np.nan),
        "ece": np.where(share_of, ece, np.nan),
        "ece_scaled": np.where(rescaled, ece / 3, np.nan),
        "ece_scaled_val": np.where(rescaled & ~in_loop, ece / 2, np.nan),
        "n_test": np.full(shape, 200.0),
        "n_skipped": np.zeros(shape),
        "seconds": np.broadcast_to(np.array(cost, float), shape) * rng.uniform(0.8, 1.2, shape),
    }
    tables = {"count": n.astype(float), "confidence": sums / some, "accuracy": hits / some}
    dims = ("model", "dataset", "bn_mode", "protocol")
    transductive = np.zeros((3, count), bool)
    transductive[1] = transductive[:, np.array(normalisation) == "zscore-own"] = True
    transductive[:, ["fewshot+norm" in name for name in names]] = True
    seen = np.zeros(shape[:2], bool)
    found = xr.Dataset(
        {name: (dims, np.where(gone, np.nan, value)) for name, value in values.items()}
        | {
            f"reliability_{name}": (
                (*dims, "bin"),
                np.where((gone | ~share_of)[..., None], np.nan, value),
            )
            for name, value in tables.items()
        }
        | {"transductive": (dims[2:], transductive)},
        coords={
            "model": [f"{'vit' if free else 'resnet'}-{i}" for i, free in enumerate(bn_free)],
            "dataset": [f"set-{i}" for i in range(n_datasets)],
            "bn_mode": BN_MODES,
            "protocol": names,
            "bin": np.arange(15),
            "bin_low": ("bin", np.arange(15) / 15),
            "bin_high": ("bin", np.arange(1, 16) / 15),
            "backbone": ("model", ["vit" if free else "resnet" for free in bn_free]),
            "family": ("model", [["contrastive", "clustering"][i % 2] for i in range(n_models)]),
            "stage": ("model", ["late"] * n_models),
            "bn_free": ("model", bn_free),
            "shift": ("dataset", ["in-domain", *["other"] * (n_datasets - 1)]),
            "metric": ("dataset", ["top1"] * n_datasets),
            "n_categories": ("dataset", [10] * n_datasets),
            "kind": ("protocol", list(kind)),
            "scale": ("protocol", list(scale)),
            "normalisation": ("protocol", list(normalisation)),
            "without_normalisation": (
                "protocol",
                [stem[name].replace("-zscore", "").replace("-bn", "") for name in names],
            ),
            "backbone_bn": ("protocol", list(backbone_bn)),
            "without_backbone_bn": (
                "protocol",
                [
                    f"{name.replace('-literal', '')} {bool(bn)}"
                    for name, bn in zip(names, backbone_bn, strict=True)
                ],
            ),
            "seen_in_pretraining": (("model", "dataset"), seen),
        },
        attrs={"title": "a study (made-up numbers)", "featstore_version": "0.1.0"},
    )
    free = found.isel(model=np.flatnonzero(bn_free))  # the same under every mode
    for name, variable in found.data_vars.items():
        if "model" in variable.dims:
            variable.loc[{"model": free["model"]}] = free[name].isel(bn_mode=0, drop=True)
    return found


@pytest.fixture(scope="session")
def make_study() -> Callable[..., xr.Dataset]:
    """Made-up studies with fine-tunings, free scores and calibration."""
    return synthetic_study


@pytest.fixture(scope="session")
def results() -> xr.Dataset:
    """The Dataset of one made-up study; tests must not change it in place."""
    return synthetic_results()


@pytest.fixture(scope="session")
def make_results() -> Callable[[int], xr.Dataset]:
    """Made-up studies by seed."""
    return synthetic_results
