"""Which backbone wins with how many labels? Self-supervised against supervised, .1 % to all.

    python pipelines/label_size.py [--dry-run] [--models ...] [--datasets ...] [--protocols ...]

ResNet, ViT and ConvNeXt, each pretrained with labels and without; logistic regression, ridge
regression and nearest means on growing parts of the train split, three draws of each. Nearly free
once the features are there. A part that is no image of each category of a dataset is left out, so
that the smallest are of few datasets: how many stands beside each number.

The models of a kind do not differ in labels alone: of those without, DINOv2 and DINOv3 saw other
and far more images, of those with, AugReg's saw ImageNet-21k.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from asked import Study
from conclusions import mean_and_interval
from study import main

# Architecture: models pretrained with labels, and without.
KINDS = {
    "ResNet": (("resnet50-a1", "resnet50-tv"), ("dino-resnet50", "swav-resnet50")),
    "ViT": (("deit3-s16-in1k", "vit-s16-augreg-in21k"), ("dino-s16", "dinov2-s14")),
    "ConvNeXt": (("convnext-tiny-in1k",), ("convnextv2-fcmae-tiny", "dinov3-convnext-tiny")),
}
PROBES = ("logreg", "ridge", "ncm")
FRACTIONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def gains(results: xr.Dataset, probe: str) -> dict[float, xr.DataArray]:
    """Mean score without labels less that with, (kind, dataset), by fraction of train.

    Of a kind and dataset that lack a model there is none.
    """
    scores = results["score"].sel(bn_mode="eval")
    found = {}
    for name in (str(one) for one in results["protocol"].values):
        base, _, fraction = name.partition("+fraction=")
        if base == probe and "+" not in fraction:
            of_all = scores.sel(protocol=name, drop=True)
            found[float(fraction or 1)] = xr.concat(
                [
                    _mean(of_all, without) - _mean(of_all, supervised)
                    for supervised, without in KINDS.values()
                ],
                xr.DataArray(list(KINDS), dims="kind", name="kind"),
            )
    return dict(sorted(found.items()))


def _mean(scores: xr.DataArray, models: tuple[str, ...]) -> xr.DataArray:
    return scores.reindex(model=list(models)).mean("model", skipna=False)


def winners(results: xr.Dataset) -> None:
    """Print which kind of pretraining wins, by labels, architecture and dataset."""
    print("\nSelf-supervised less supervised, in points of the score: mean over datasets, of which")
    print("there are n, its 95 % interval by Student's t; for these models, not for all there are.")
    for probe in PROBES:
        found = gains(results, probe)
        if not any(gain.notnull().any() for gain in found.values()):
            continue
        print("\n" + (f"{probe:8}" + "".join(f"{kind:^30}" for kind in KINDS)).rstrip())
        for fraction, gain in found.items():
            cells = (_cell(gain.sel(kind=kind).values) for kind in KINDS)
            print((f"{fraction:8.1%}" + "".join(f"{cell:^30}" for cell in cells)).rstrip())
        by_task = {fraction: 100 * gain.mean("kind") for fraction, gain in found.items()}
        print(f"{probe}, mean over architectures, by dataset:")
        print(f"{'':16}" + "".join(f"{fraction:>8.1%}" for fraction in by_task))
        for dataset in results["dataset"].values:
            row = [float(gain.sel(dataset=dataset)) for gain in by_task.values()]
            print(f"{dataset!s:16}" + "".join(f"{x:+8.1f}" if x == x else f"{'':8}" for x in row))


def _cell(gain: np.ndarray) -> str:
    mean, low, high, n = mean_and_interval(100 * gain)
    if not n:
        return ""
    return f"{mean:+.1f} (n=1)" if n == 1 else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}] n={n}"


STUDY = Study(
    title="How the winner depends on the number of labels",
    models=tuple(name for kind in KINDS.values() for of_kind in kind for name in of_kind),
    parts=(
        (
            ("cifar10", "cifar100", "food101", "dtd", "oxford_pets", "flowers102", "eurosat"),
            tuple(
                f"{name}{f'+fraction={fraction}' if fraction < 1 else ''}"
                for name in PROBES
                for fraction in (*FRACTIONS, 1)
            ),
        ),
    ),
    seeds=(0, 1, 2),
    reference="logreg",
    answer=winners,
)

if __name__ == "__main__":
    main(STUDY, __doc__ or "")
