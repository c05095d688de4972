"""Records of a made-up study of any size: those of a small probe, under other names and scores."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import featstore

PROTOCOLS = (
    *("knn-marks", "logreg", "ridge", "ncm", "fewshot-5shot-ericsson"),
    *("knn-marks-zscore", "logreg+normalisation=zscore", "linear-marks-1view"),
    *("linear-marks-1view-bn", "finetune-marks"),
    *("knn-marks-zscore-own", "ridge+normalisation=zscore", "ncm+normalisation=zscore", "lda"),
    *("fewshot-5shot-ericsson+normalisation=zscore", "knn-dino-k10", "knn-5shot", "logreg-1shot"),
    *("logreg-5shot", "finetune-marks-bn"),
)
"""The first ten, and all twenty, have pairs that differ in a normalisation alone."""

_LIKE = {  # nothing is fine-tuned: what is stored looks the same
    "finetune-marks": "linear-marks-1view",
    "finetune-marks-bn": "linear-marks-1view-bn",
}
_ALIKE = 5  # every fifth model says the same of all images, so that few files are made


def write_study(
    root: Path, models: int, datasets: int, protocols: int, modes: Sequence[str] = ("eval",)
) -> None:
    """Records of scores that good models, easy datasets and chance make.

    Every third model is a ViT, without BatchNorm, half of these generative; six datasets are of
    one cluster. In other BN modes than `eval` nothing is fine-tuned.
    """
    seeds = _seeds(root.with_name("seed"))
    rng = np.random.default_rng(0)
    size = models, datasets, protocols
    good, easy, apt = (rng.normal(0, 0.7, count) for count in size)
    logits = good[:, None, None] + easy[:, None] + apt + rng.normal(0, 0.3, size)
    images = [[_images(rng, seeds["logreg"][1]) for _ in range(_ALIKE)] for _ in range(datasets)]
    for (model, dataset), _ in np.ndenumerate(logits[:, :, 0]):
        is_vit = model % 3 == 2
        info = {
            "method": f"method-{model}", "lineage": f"model-{model}", "stage": "late",
            "family": f"family-{model % 5}", "backbone": ("resnet", "vit")[is_vit],
            "paradigm": "generative" if model % 6 == 5 else "discriminative", "bn_free": is_vit,
        }  # fmt: skip
        for mode in ("eval",) if is_vit else modes:
            digest = hashlib.sha256(f"{model} {dataset} {mode}".encode()).hexdigest()
            folder = root / f"model-{model}" / f"set-{dataset}" / mode
            for place, name in enumerate(PROTOCOLS[:protocols]):
                if name in _LIKE and mode != "eval":
                    continue
                document, kept = seeds[name]
                if b"rank.npy" in kept:  # it keeps what each image was told to be
                    kept = images[dataset][model % _ALIKE]
                score = 1 / (1 + math.exp(-logits[model, dataset, place] - rng.normal(0, 0.05)))
                ends = {"value": score, "low": score - 0.02, "high": score + 0.02}
                told = document | {
                    "model": f"model-{model}", "dataset": f"set-{dataset}", "bn_mode": mode,
                    "features": digest,
                    "metrics": document["metrics"] | {document["headline"]: ends},
                    "splits": dict.fromkeys(document["splits"], digest),
                    "model_info": document["model_info"] | info,
                    "dataset_info": document["dataset_info"] | _of_dataset(dataset, datasets),
                }  # fmt: skip
                _put(folder / name / f"0-{digest[:12]}.json", told, kept)
            (folder / "features.json").write_text(json.dumps(told["splits"], indent=1))


def write_images(root: Path, models: int, n: int) -> None:
    """Records of one protocol on one dataset of n test images in 1,000 categories."""
    seed = _seeds(root.with_name("seed"))["logreg"][0]
    rng = np.random.default_rng(0)
    order, label = rng.permutation(n), rng.integers(0, 1000, n)
    for model in range(models):
        name, digest = f"model-{model}", f"{model:012x}" + "0" * 52
        info = {"method": name, "lineage": name, "stage": "late"}
        right = rng.random(n) < 0.7 + 0.001 * model
        outcomes = {
            "index": order, "label": label, "rank": np.where(right, 0, 3).astype(np.int32),
            "margin": rng.normal(size=n).astype(np.float32),
            "top5": rng.integers(0, 1000, (n, 5), dtype=np.int32),
            "top5_score": rng.normal(size=(n, 5)).astype(np.float32),
        }  # fmt: skip
        told = seed | {
            "model": name, "features": digest, "model_info": seed["model_info"] | info,
        }  # fmt: skip
        place = root / name / seed["dataset"] / "eval" / "logreg" / f"0-{digest[:12]}.json"
        _put(place, told, _compressed(outcomes))


def _put(path: Path, document: dict[str, Any], kept: bytes) -> None:
    """A record and the file beside it."""
    told = document | {"outcomes_sha256": hashlib.sha256(kept).hexdigest()}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(told, indent=1, sort_keys=True))
    path.with_suffix(".npz").write_bytes(kept)


def _of_dataset(dataset: int, datasets: int) -> dict[str, str]:
    together = datasets - 6 <= dataset
    return {
        "shift": "other" if dataset else "in-domain",
        "cluster": "of six" if together else f"set-{dataset}",
        "source": f"set-{dataset}",
    }


def _seeds(folder: Path) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Of each protocol a record, and the file beside it."""
    store = folder / "features.zarr"
    featstore.extract(["tiny-vit-random"], ["textures"], store=store, device="cpu")
    run = [name for name in PROTOCOLS if name not in _LIKE]
    featstore.probe(
        protocols=run, store=store, results=folder / "r", scheduler="sync", device="cpu"
    )
    found = {}
    for path in sorted(folder.glob("r/*/*/*/*/*.json")):
        document = json.loads(path.read_bytes())
        found[document["protocol"]] = document, path.with_suffix(".npz").read_bytes()
    for name, like in _LIKE.items():
        document, kept = found[like]
        settings = document["settings"] | {"kind": "finetune", "backbone_bn": "train"}
        again = {"protocol": name, "settings": settings, "seconds": 1000 * document["seconds"]}
        found[name] = document | again, kept
    return found


def _images(rng: np.random.Generator, kept: bytes) -> bytes:
    """A file of the same size that says something else of each image."""
    with np.load(io.BytesIO(kept)) as arrays:
        rows = {name: arrays[name] for name in arrays.files}
    rows["rank"] = rng.permutation(rows["rank"])
    return _compressed(rows)


def _compressed(rows: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **rows)
    return buffer.getvalue()
