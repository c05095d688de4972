"""The tiny study: the whole path in miniature, on real images, offline, in minutes.

    python pipelines/tiny.py [--whole] [--out data]

15 backbones pretrained on handwritten digits, 7 datasets, 13 protocols off the store, BN modes
`eval` and `adapt`; ends with a ranking, the correlations between protocols, a report and the
results store. With `--whole`, also scores that train nothing, few images of each category, and
fine-tuning of every backbone on all and on a tenth of each dataset; ends with which of the cheap
protocols predicts it. Run again, it finds everything done.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import xarray as xr

import featstore

CHEAP = (
    *("core", "free", "kshot"),
    *("fewshot-5shot-ericsson", "fewshot-5shot-ericsson+normalisation=zscore"),
)
COLUMNS = ("knn-marks", "logreg", "linear-marks-1view", "finetune-tiny")
EXPENSIVE = ("finetune-tiny", "finetune10-tiny")
PROCESSES = min(os.cpu_count() or 1, 8)


def main() -> None:
    """Extract, probe, perhaps fine-tune; correlate, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder of all that is made")
    parser.add_argument("--figures", type=Path, help="folder for README's pictures")
    parser.add_argument("--whole", action="store_true", help="more protocols, and fine-tuning")
    arguments = parser.parse_args()
    out: Path = arguments.out
    logging.basicConfig(format="%(message)s")
    begun = time.perf_counter()
    stages = 4 if arguments.whole else 3

    print(f"1/{stages}  embedding 7 datasets with 15 models, once", flush=True)
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

    protocols = CHEAP if arguments.whole else CHEAP[:1]
    count = len(featstore.probes.expand(protocols))
    print(f"2/{stages}  probing: {count} protocols off the store", flush=True)
    failed = tell_cells(
        featstore.probe(
            ["tiny"],
            ["tiny"],
            protocols=protocols,
            store=out / "features.zarr",
            results=out / "results",
            device="cpu",
            scheduler="processes",
        )
    )
    if arguments.whole:
        print(
            f"3/{stages}  fine-tuning 15 models on 7 datasets, all of them and a tenth", flush=True
        )
        with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
            shares = [featstore.models.expand(["tiny"])[i::PROCESSES] for i in range(PROCESSES)]
            for done in pool.map(fine_tune, shares, [out / "results"] * PROCESSES):
                failed += tell_cells(done)

        featstore.similarity(
            ["tiny"], ["tiny"], store=out / "features.zarr", results=out / "results", device="cpu"
        )

    print(f"{stages}/{stages}  what the numbers say")
    results = featstore.open_results(out / "results")
    print_ranking(results)
    for models in ("all", "independent"):
        print_correlations(results, models)
    for target in EXPENSIVE:
        if target in results.protocol:
            print_predictors(results, target)
    if arguments.figures:
        draw(results, arguments.figures)
    similarity = featstore.open_similarity(out / "results") if arguments.whole else None
    page = featstore.report(
        results, out / "report.html", similarity=similarity, records=out / "results"
    )
    print(f"\nreport   {page}")
    print(f"results  {out / 'results.zarr'}   (xarray.open_zarr opens it)")
    print(f"done in {time.perf_counter() - begun:.0f} s")
    if failed:
        raise SystemExit(1)


def fine_tune(models: list[str], results: Path) -> Any:
    """Fine-tune some of the models, in a process of its own: these nets do not fill two cores."""
    torch.set_num_threads(1)
    cells: dict[str, None] = {}

    def progress(cell: str, done: int, total: int) -> None:
        if cell not in cells:
            cells[cell] = None
            if len(cells) % 15 == 0:
                every = len(models) * 7 * len(EXPENSIVE)
                print(f"     {len(cells)} of one process's {every} cells begun", flush=True)

    return featstore.finetune(
        models, ["tiny"], protocols=EXPENSIVE, results=results, device="cpu", num_workers=0,
        progress=progress,
    )  # fmt: skip


def tell_cells(done: Any) -> int:
    """Say what a stage did, and return how many cells failed."""
    print(
        f"     {done.filled} cells filled, {done.up_to_date} up to date, "
        f"{len(done.failed)} failed, {done.seconds:.0f} s"
    )
    for failure in done.failed:
        print(f"     {failure.what}: {failure.error}")
    return len(done.failed)


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
    shown = [p for p in COLUMNS if p in ranking.protocol]
    print("\nRanking by mean rank over all datasets and protocols, BN mode eval; mean scores of")
    print("some protocols in %. Early checkpoints and random weights take no place.")
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
    core = featstore.probes.expand(["core"])
    for protocol in [one for one in between.protocol.values if one in core]:
        with_logreg = between.sel(protocol=protocol, other="logreg")
        across = domains.sel(protocol=protocol)
        print(
            f"{marked(across):24}"
            f"{interval(with_logreg, 'pearson'):>26}{interval(across, 'pearson_mean'):>28}"
        )
    print_mark(between.sel(protocol=between.protocol.isin(core)))


def print_predictors(results: xr.Dataset, target: str) -> None:
    """Which cheap protocols rank the models as an expensive one does."""
    found = featstore.predictors(results.drop_sel(protocol=other_than(results, target)), target)
    print(
        f"\nWhat predicts {target} ({found.attrs['seconds']:.1f} s a cell): Spearman's correlation"
    )
    print("over models, mean over datasets, with 95 % interval; seconds a cell")
    for name in found.protocol.values:
        row = found.sel(protocol=name)
        print(f"{marked(row):28}{interval(row, 'spearman'):>26}{float(row.seconds):9.3f} s")
    print_mark(found)


def marked(row: xr.Dataset) -> str:
    """A protocol's name, with a dagger if scored images take part in a statistic."""
    return f"{row.protocol.item()}{' †' if row.transductive else ''}"


def print_mark(found: xr.Dataset) -> None:
    """Say what a dagger means, if there is one."""
    if found.transductive.any():
        print("† transductive: sees all test images at once")


def other_than(results: xr.Dataset, target: str) -> list[str]:
    """The other fine-tunings: no cheap predictors."""
    tuned = results.protocol.values[results.kind.values == "finetune"]
    return [str(name) for name in tuned if name != target]


def interval(found: xr.Dataset, name: str) -> str:
    """A coefficient with its 95 % interval."""
    value, low, high = (float(found[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
