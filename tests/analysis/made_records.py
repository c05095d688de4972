"""Made-up records of cells, as probes write them: nothing in them was measured."""

import numpy as np

from featstore.results import Cell, record


def put(root, value, *, model, dataset, protocol, headline="top1", half=0.01, bn_mode="eval"):
    """Record one cell whose metrics follow from `value`, each with an interval of +- `half`."""
    ends = {"value": value, "low": value - half, "high": value + half}
    metrics = {headline: ends, "ece": {"value": 0.05, "low": None, "high": None}}
    facts = {
        "metrics": metrics,
        "n_train": 40,
        "n_test": 20,
        "n_skipped": 0,
        "n_categories": 3,
        "seconds": 0.5,
        "certificate": {},
        "settings": {"kind": "linear", "scale": "share", "normalisation": "none"},
        "headline": headline,
        "transductive": False,
        "model_info": {
            "backbone": "resnet50", "family": "contrastive", "paradigm": "discriminative",
            "method": model, "teacher": "", "stage": "late", "lineage": model,
            "pretraining": ["imagenet"], "bn_free": False,
        },
        "dataset_info": {"shift": "other", "cluster": "c", "metric": headline, "source": "photos"},
        "versions": {"featstore": "0.1.0"},
        "splits": {"test": "a" * 64},
    }  # fmt: skip
    outcomes = {"rank": np.zeros(20, np.int32)}
    record(root, Cell(model, dataset, bn_mode, protocol, 0, "a" * 64), facts, outcomes)
