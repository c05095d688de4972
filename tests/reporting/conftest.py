"""Studies to report, and the browser that shows them."""

import os
import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

# The made-up studies of tests/analysis, which is no package, so they are found by their path.
_PLACE = Path(__file__).parents[1] / "analysis" / "conftest.py"
_spec = spec_from_file_location("made_up_studies", _PLACE)
_studies = module_from_spec(_spec)
_spec.loader.exec_module(_studies)

results = _studies.results
make_study = _studies.make_study

DATASETS = [
    *("imagenet", "inaturalist", "cub", "pascal", "cifar100"),
    *(f"domainnet_{name}" for name in ("clipart", "infograph", "painting", "quickdraw")),
    *("domainnet_real", "domainnet_sketch@marks"),
]
METHODS = [
    *("jigsaw", "rotnet", "npid", "sela-v2", "npid-pp", "pirl", "clusterfit", "deepcluster-v2"),
    *("swav", "simclr", "moco-v2", "simsiam", "byol", "dino", "barlowtwins", "densecl"),
    "moco-v3-momentum",
]
FREE = ["dino", "ibot", "moco-v3-momentum", "mae", "maskfeat", "beitv2", "milan", "eva", "pixmim"]
PROTOCOLS = {  # of the made-up study, and what it is called here
    "knn-marks": "knn-marks",
    "knn-marks-zscore": "knn-marks-zscore",
    "knn-marks-zscore-own": "knn-marks-zscore-own",
    "logreg": "logreg",
    "ncm": "ncm",
    "fewshot": "fewshot-5shot-ericsson",
    "fewshot+normalisation=zscore": "fewshot-5shot-ericsson+normalisation=zscore",
    "linear-marks": "linear-marks",
    "linear-marks-literal": "linear-marks-literal",
    "finetune-marks": "finetune-marks",
}


@pytest.fixture(scope="session")
def first_study(make_study):
    """26 models x 11 datasets x 3 BN modes x 10 protocols, with gaps, failures and digests."""
    study = make_study(0, n_bn=17, n_free=9, n_datasets=11).sel(protocol=list(PROTOCOLS))
    models = [f"{name}-resnet50" for name in METHODS]
    free = (
        "dino",
        "ibot",
        "moco-v3-momentum",
        "mae",
        "maskfeat",
        "beitv2",
        "milan",
        "eva",
        "pixmim",
    )
    models += [f"{name}-vitb16" for name in free]
    study = study.assign_coords(model=models, dataset=DATASETS, protocol=list(PROTOCOLS.values()))
    study = study.copy(deep=True)
    diverged = {"model": "pirl-resnet50", "dataset": "cub", "protocol": "finetune-marks"}
    never = {"model": "simclr-resnet50", "dataset": "pascal", "protocol": "ncm"}
    for name in ("score", "low", "high"):
        study[name].loc[diverged] = np.nan
    for name in ("score", "low", "high", "n_test", "seconds"):
        study[name].loc[never] = np.nan
    digests = [
        [[f"{i:02x}{j:02x}{k:02x}" * 10 for k in range(3)] for j in range(11)] for i in range(26)
    ]
    return study.assign(features_digest=(("model", "dataset", "bn_mode"), digests))


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium; without one the tests are skipped, unless one is named."""
    named = os.environ.get("FEATSTORE_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium: apt install chromium, or name one in FEATSTORE_CHROMIUM")
    quiet = ("background-networking", "component-update", "sync", "gpu")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", *(f"--disable-{one}" for one in quiet)]
        )
        yield browser
        browser.close()
