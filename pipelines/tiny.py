"""The tiny study: the whole path in miniature, on real images, offline, in minutes.

    python pipelines/tiny.py [--out data]

15 backbones pretrained on handwritten digits, 7 datasets, 11 protocols, BN modes `eval` and
`adapt`; ends with a ranking, the correlations between protocols, a report and the results store.
Run again, it finds everything done.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import xarray as xr

import featstore


def main() -> None:
    """Extract, probe, correlate, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder of all that is made")
    parser.add_argument("--figures", type=Path, help="folder for README's pictures")
    arguments = parser.parse_args()
    out: Path = arguments.out
    logging.basicConfig(format="%(message)s")
    begun = time.perf_counter()

    print("1/3  embedding 7 datasets with 15 models, once")
    extracted = featstore.extract(
        ["tiny"],
        ["tiny"],
        bn_modes=["eval", "adapt"],
        store=out / "features.zarr",
        device="cpu",  # GPUs round otherwise; these figures are compared between machines
    )
    print(
        f"     {extracted.filled} splits filled, {extracted.up_to_date} up to date, "
        f"{extracted.images} images decoded, {extracted.seconds:.0f} s"
    )

    print("2/3  probing: 11 protocols off the store")
    probed = featstore.probe(
        ["tiny"],
        ["tiny"],
        store=out / "features.zarr",
        results=out / "results",
        device="cpu",
        scheduler="processes",
    )
    print(
        f"     {probed.filled} cells filled, {probed.up_to_date} up to date, "
        f"{len(probed.failed)} failed, {probed.seconds:.0f} s"
    )
    for failure in probed.failed:
        print(f"     {failure.what}: {failure.error}")

    print("3/3  what the numbers say")
    results = featstore.open_results(out / "results")
    print_ranking(results)
    for models in ("all", "independent"):
        print_correlations(results, models)
    if arguments.figures:
        draw(results, arguments.figures)
    page = featstore.report(results, out / "report.html")
    print(f"\nreport   {page}\nresults  {probed.results}   (xarray.open_zarr opens it)")
    print(f"done in {time.perf_counter() - begun:.0f} s")
    if probed.failed:
        raise SystemExit(1)


def draw(results: xr.Dataset, folder: Path) -> None:
    """The pictures of README: scores, agreement of the protocols, digits against the others."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "scores": featstore.heat_map(results, protocol="logreg").figure,
        "protocols": featstore.correlation_map(featstore.correlate_protocols(results)).figure,
        "domains": featstore.scatter_grid(results, protocol="logreg"),
    }
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=110, facecolor="white", bbox_inches="tight")


def print_ranking(results: xr.Dataset) -> None:
    """Models by their mean rank over protocols, early checkpoints and the floor marked."""
    ranking = featstore.rank_models(results)
    shown = [p for p in ("knn-marks", "logreg", "linear-marks-1view") if p in ranking.protocol]
    print("\nRanking by mean rank over all datasets and protocols, BN mode eval; mean scores of")
    print("three protocols in %. Early checkpoints and random weights take no place.")
    print(f"{'':3} {'model':30}{'stage':8}{'rank':>6}" + "".join(f"{p:>20}" for p in shown))
    for name in ranking.model.values:
        row = ranking.sel(model=name)
        place = "" if row.place.isnull() else f"{int(row.place)}"
        scores = "".join(f"{100 * float(row.score.sel(protocol=p)):20.1f}" for p in shown)
        rank = float(row.mean_rank)
        print(f"{place:>3} {name!s:30}{row.stage.item()!s:8}{rank:6.1f}{scores}")


def print_correlations(results: xr.Dataset, models: str) -> None:
    """How protocols agree over models, and how digits predict the other datasets."""
    between = featstore.correlate_protocols(results, models=models, by_dataset=False)
    domains = featstore.correlate_domains(results, models=models)
    kept = "all models" if models == "all" else "without early checkpoints and the random floor"
    print(f"\nPearson's r over models, with 95 % interval ({kept}, n = {int(between.n.max())}):")
    print("of a protocol with logreg, mean over the datasets; and of its scores on digits with")
    print("those on another dataset, mean over the six others")
    print(f"{'':24}{'with logreg':>26}{'digits with another':>28}")
    for protocol in between.protocol.values:
        with_logreg = between.sel(protocol=protocol, other="logreg")
        across = domains.sel(protocol=protocol)
        print(
            f"{protocol!s:24}"
            f"{interval(with_logreg, 'pearson'):>26}{interval(across, 'pearson_mean'):>28}"
        )


def interval(found: xr.Dataset, name: str) -> str:
    """A coefficient with its 95 % interval."""
    value, low, high = (float(found[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
