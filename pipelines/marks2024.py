"""Marks et al., A Closer Look at Benchmarking Self-Supervised Pre-training: the whole study.

    python pipelines/marks2024.py [--dry-run] [--models ...] [--datasets ...] [--protocols ...]

26 models x 11 datasets. kNN, linear probes, fine-tuning on 100, 10 and 1 % of train, and few-shot
episodes, each as it is and with a normalisation before the head; and what the backbone's own
BatchNorm does (BN modes eval, batch, adapt). Weeks of GPU time: `--dry-run` says what it takes.

Fine-tuning on 10 and 1 % is by the rates of byol2; that by the rates of the other three setups, and
the small network with the backbone in the loop, are run where they are asked for, as by
`--protocols finetune10-marks-swav linear-marks-mlp`.
"""

from __future__ import annotations

from asked import Study
from study import main

TRAININGS = (
    *("linear-marks", "linear-marks-literal"),
    *("finetune-marks", "finetune10-marks-byol2", "finetune1-marks-byol2"),
)

STUDY = Study(
    title="A Closer Look at Benchmarking Self-Supervised Pre-training (Marks et al.)",
    models=("marks2024",),
    parts=(
        (
            ("marks2024",),
            (
                # Of these, kNN and the linear probes come with and without a normalisation.
                *("core", "marks2024", "free", "kshot"),
                *("fewshot-5shot-ericsson", "fewshot-5shot-ericsson+normalisation=zscore"),
            ),
        ),
    ),
    trainings=tuple(name for plain in TRAININGS for name in (plain, f"{plain}-bn")),
    more_trainings=tuple(
        f"{name}{head}"
        for name in (
            *("linear-marks-mlp", "linear-marks-literal-mlp"),
            *(f"finetune10-marks-{setup}" for setup in ("swav", "barlowtwins", "byol1")),
            *(f"finetune1-marks-{setup}" for setup in ("swav", "barlowtwins", "byol1")),
        )
        for head in ("", "-bn")
    ),
    trained_on=("marks2024",),
    bn_modes=("eval", "batch", "adapt"),
    reference="finetune-marks",
)

if __name__ == "__main__":
    main(STUDY, __doc__ or "")
