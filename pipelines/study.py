"""What the studies share: stages, each of which goes on where it stopped.

    look what is there -> extract -> probe -> finetune -> compare -> what the numbers say

A study is run by its script. Every stage finds what is done already, so that the same command goes
on after an interruption, takes in what was missing, and adds what was narrowed away before.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

from asked import Study, both, narrowed
from conclusions import conclude

import featstore

STATUS = """\
exit status: 0 all is done; 1 cells failed or something is missing, as said at the end, and the rest
is done; 2 the command makes no sense; 130 interrupted. The same command goes on."""


@dataclass
class Outcome:
    """What is not as it should be.

    Attributes
    ----------
    missing : why models and datasets are not there ; failed : reason -> cells, or what is of many
    """

    missing: list[str] = field(default_factory=list)
    failed: dict[str, list[str]] = field(default_factory=dict)

    def fail(self, what: str, why: str) -> None:
        """Remember what failed."""
        self.failed.setdefault(why, []).append(what)

    def tell(self) -> None:
        """Say all of it, a line for each reason."""
        for reason in self.missing:
            print(f"missing: {reason}")
        for why, cells in self.failed.items():
            more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
            print(f"failed: {cells[0]}{more}: {why}")


def main(study: Study, doc: str) -> None:
    """Run a study as its command line says, and end with the exit status."""
    parser = argparse.ArgumentParser(
        description=doc, epilog=STATUS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder of all that is made")
    parser.add_argument("--data-root", type=Path, help="where the datasets lie")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="only these, or of these sets")
    parser.add_argument(
        "--datasets", nargs="+", metavar="DATASET", help="only these, with @TRANSFORM or without"
    )
    parser.add_argument(
        "--protocols", nargs="+", metavar="PROTOCOL", help="only these; NAME+setting=value as well"
    )
    parser.add_argument("--bn-modes", nargs="+", metavar="MODE", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of the study's")
    parser.add_argument("--dry-run", action="store_true", help="say what it takes, and stop")
    parser.add_argument("--device", default="auto", help="of extraction and training")
    parser.add_argument("--probe-device", default="auto", help="of what is read off the store")
    parser.add_argument("--num-workers", type=int, help="processes that decode images")
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a training batch")
    parser.add_argument("--scheduler", default="processes", help="of probes, as featstore probe's")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    try:
        study = narrowed(
            study, arguments.models, arguments.datasets, arguments.protocols, arguments.bn_modes
        )
    except (ValueError, featstore.FeatStoreError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if arguments.seeds:
        study = replace(study, seeds=tuple(arguments.seeds))
    try:
        sys.exit((dry_run if arguments.dry_run else run)(study, arguments))
    except ValueError as error:  # an option that cannot be
        parser.exit(2, f"{parser.prog}: {error}\n")
    except featstore.FeatStoreError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"\n{parser.prog}: interrupted; the same command goes on from here\n")


def dry_run(study: Study, arguments: argparse.Namespace) -> int:
    """Say what a study takes: its extractions in full, and how many cells are filled.

    Returns the exit status of `featstore plan`. Nothing is written.
    """
    models, seeds = len(study.models), len(study.seeds)
    for datasets, protocols in study.parts:
        named = [("--model", study.models), ("--dataset", datasets), ("--bn-mode", study.bn_modes)]
        options = [word for flag, names in named for name in names for word in (flag, name)]
        options += ["--views", str(views(protocols)), "--store", str(arguments.out / STORE)]
        if arguments.data_root:
            options += ["--data-root", str(arguments.data_root)]
        command = [sys.executable, "-m", "featstore", "plan", *options]
        planned = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(f"extract: {models} models, {len(datasets)} datasets\n{planned.stdout}", flush=True)
        if planned.returncode:
            return planned.returncode
        # Its last row is the total, whose second word counts pairs of model and BN mode.
        (total,) = (one for one in planned.stdout.splitlines() if one.startswith("total "))
        cells = int(total.split()[1]) * len(protocols) * seeds
        print(f"probe: {len(protocols)} protocols, {seeds} seeds: {cells:,} cells at most\n")
    if study.trainings:
        cells = models * len(study.trained_on) * len(study.trainings) * seeds
        print(
            f"finetune: {models} models, {len(study.trained_on)} datasets, "
            f"{len(study.trainings)} protocols, {seeds} seeds: {cells:,} trainings at most"
        )
    return 0


STORE, RESULTS = "features.zarr", "results"  # below --out


def views(protocols: Iterable[str]) -> int:
    """Augmented views of the train split that protocols read."""
    return max((getattr(featstore.probes.get(one), "views", 0) for one in protocols), default=0)


def run(study: Study, arguments: argparse.Namespace) -> int:
    """All stages; returns the exit status."""
    begun = time.perf_counter()
    print(f"{study.title}\n")
    outcome = Outcome()
    models, there = look(study, arguments, outcome)
    for datasets, protocols in study.parts:
        extract(study, models, both(datasets, there), views(protocols), arguments, outcome)
        probe(study, datasets, protocols, arguments, outcome)
    if study.trainings:
        finetune(study, models, both(study.trained_on, there), arguments, outcome)
    compare(arguments)
    try:
        conclude(study, arguments.out / RESULTS, arguments.out / "report.html")
    except featstore.FeatStoreError as error:  # no cell at all
        print(error)
    finally:
        print(f"done in {_duration(time.perf_counter() - begun)}")
        outcome.tell()
    return int(bool(outcome.missing or outcome.failed))


def look(
    study: Study, arguments: argparse.Namespace, outcome: Outcome
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Models and datasets that are there; weights are fetched for that if they can be."""
    stage = Stage("look", "which weights and images are there", "MiB")
    models, datasets = [], []
    for name in study.models:
        try:
            featstore.load_model(
                name, progress=lambda what, done, total: stage(what, done >> 20, total >> 20)
            )
            models.append(name)
        except featstore.FeatStoreError as error:
            outcome.missing.append(str(error))
    every = dict.fromkeys([*(d for names, _ in study.parts for d in names), *study.trained_on])
    for name in every:
        dataset = featstore.load_dataset(name, data_root=arguments.data_root)
        try:
            for split in dataset.splits:
                dataset.split(split)
            datasets.append(name)
        except featstore.FeatStoreError as error:
            outcome.missing.append(str(error))
    for reason in outcome.missing:
        print(f"  left out: {reason}")
    stage.end(
        f"{len(models)} of {len(study.models)} models, {len(datasets)} of {len(every)} datasets"
    )
    return tuple(models), tuple(datasets)


def extract(
    study: Study,
    models: Sequence[str],
    datasets: Sequence[str],
    count: int,
    arguments: argparse.Namespace,
    outcome: Outcome,
) -> None:
    """Embed datasets with models, and `count` augmented views of their train splits."""
    if not models or not datasets:
        return
    modes = ", ".join(study.bn_modes)
    size = f"{len(models)} models x {len(datasets)} datasets, BN modes {modes}, {count} views"
    stage = Stage("extract", size, "images")
    filled = up_to_date = 0

    def embed(models: Sequence[str], datasets: Sequence[str]) -> None:
        nonlocal filled, up_to_date
        try:
            done = featstore.extract(
                models, datasets, bn_modes=study.bn_modes, views=count,
                store=arguments.out / STORE, data_root=arguments.data_root,
                device=arguments.device, num_workers=arguments.num_workers, progress=stage,
            )  # fmt: skip
        except featstore.FeatStoreError as error:
            # One image or embedding stops an extraction; here the others go on without it.
            if len(datasets) > 1:
                for one in datasets:
                    embed(models, [one])
            elif len(models) > 1:
                for one in models:
                    embed([one], datasets)
            else:
                outcome.fail(f"extraction of {datasets[0]} with {models[0]}", str(error))
        else:
            filled, up_to_date = filled + done.filled, up_to_date + done.up_to_date
            outcome.missing += done.failed  # gone since it was looked for

    embed(models, datasets)
    stage.end(f"{filled} splits filled, {up_to_date} up to date")


def probe(
    study: Study,
    datasets: Sequence[str],
    protocols: Sequence[str],
    arguments: argparse.Namespace,
    outcome: Outcome,
) -> None:
    """Fill the cells of what is stored; why the rest is not has been said."""
    store = featstore.Store(arguments.out / STORE)
    known = store.keys()
    stored = [key for key in known if key.model in study.models and key.dataset in datasets]
    models = both(study.models, (key.model for key in stored))
    names = both(datasets, (key.dataset for key in stored))
    if not stored:
        return
    size = f"{len(models)} models x {len(names)} datasets x {len(protocols)} protocols"
    stage = Stage("probe", f"{size} x {len(study.seeds)} seeds", "cells")
    done = featstore.probe(
        models, names, protocols=protocols, bn_modes=study.bn_modes, seeds=study.seeds,
        store=arguments.out / STORE, results=arguments.out / RESULTS,
        device=arguments.probe_device, scheduler=arguments.scheduler, strict=False, progress=stage,
    )  # fmt: skip
    # Of features that are not whole the extraction has told, and need not be told for each cell.
    keys = [featstore.FeatureKey(*one) for one in product(models, names, study.bn_modes)]
    unfinished = {str(key) for key in keys if not is_finished(store, key)} if done.failed else set()
    done.failed = [one for one in done.failed if one.what not in unfinished]
    tell_cells(stage, done, outcome)


def is_finished(store: featstore.Store, key: featstore.FeatureKey) -> bool:
    """Whether features can be scored, or are damaged, of which somebody should be told."""
    try:
        return {"train", "test"} <= {*store.open(key).splits}
    except LookupError:
        return False
    except featstore.FeatStoreError:
        return True


def finetune(
    study: Study,
    models: Sequence[str],
    datasets: Sequence[str],
    arguments: argparse.Namespace,
    outcome: Outcome,
) -> None:
    """Train every model on every dataset by every protocol that trains."""
    if not models or not datasets:
        return
    size = f"{len(models)} models x {len(datasets)} datasets x {len(study.trainings)} protocols"
    stage = Stage("finetune", f"{size} x {len(study.seeds)} seeds", "images")
    done = featstore.finetune(
        models, datasets, protocols=study.trainings, seeds=study.seeds,
        results=arguments.out / RESULTS, data_root=arguments.data_root, device=arguments.device,
        num_workers=arguments.num_workers, accumulate=arguments.accumulate, strict=False,
        progress=stage,
    )  # fmt: skip
    tell_cells(stage, done, outcome)


def tell_cells(stage: Stage, done: Any, outcome: Outcome) -> None:
    """Say what came of cells, and which their data are too few or unfit for."""
    for reason, count in Counter(one.error for one in done.not_applicable).items():
        print(f"  left out {count} cells: {reason}")
    for failure in done.failed:
        outcome.fail(failure.what, failure.error)
    left, failed = len(done.not_applicable), len(done.failed)
    stage.end(f"{done.filled} cells filled, {done.up_to_date} up to date, {failed} failed, "
             f"{left} left out")  # fmt: skip


def compare(arguments: argparse.Namespace) -> None:
    """How alike features are, of all that is stored: what is compared last replaces the rest.

    No cell waits for it, and of features that cannot be read probes have told.
    """
    if not featstore.Store(arguments.out / STORE).keys():
        return
    stage = Stage("compare", "features of every two models and BN modes", "sets")
    done = featstore.similarity(
        store=arguments.out / STORE, results=arguments.out / RESULTS,
        device=arguments.probe_device, progress=stage,
    )  # fmt: skip
    for failure in done.failed:
        print(f"  left out {failure.what}: {failure.error}")
    stage.end(f"{done.feature_sets} sets of {done.datasets} datasets")


class Stage:
    """Lines about a stage that may take weeks: what is begun, and now and then how far it is."""

    def __init__(self, stage: str, size: str, unit: str) -> None:
        self.stage, self.unit = stage, unit
        self.begun = self.said = time.monotonic()
        self.seen: set[str] = set()
        print(f"{stage:8}  {size}", flush=True)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Progress of a stage of featstore: what is being done, how much of it, of how much."""
        now = time.monotonic()
        # What is probed comes in any order and quickly, so that only the count says something.
        new = self.unit != "cells" and what not in self.seen
        # Each minute at first, and after a day each half hour.
        if new or now - self.said > max(60, (now - self.begun) / 50):
            self.seen.add(what)
            self.said = now
            at = time.strftime("%d %b %H:%M:%S")
            print(f"  {at}  {what}: {done:,} of {total:,} {self.unit}", flush=True)

    def end(self, outcome: str) -> None:
        """Say what came of the stage."""
        took = _duration(time.monotonic() - self.begun)
        print(f"{self.stage:8}  {outcome}; {took}\n", flush=True)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
