"""Ericsson et al., How Well Do Self-Supervised Models Transfer?: its classification tasks.

    python pipelines/ericsson2021.py [--dry-run] [--models ...] [--datasets ...] [--protocols ...]

14 models: logistic regression and fine-tuning on 11 many-shot datasets, episodes of 5, 20 and 50
images of each category on 14 few-shot ones. Weeks of GPU time: `--dry-run` says what it takes.
"""

from __future__ import annotations

from asked import Study
from study import main

STUDY = Study(
    title="How Well Do Self-Supervised Models Transfer? (Ericsson et al.)",
    models=("ericsson2021",),
    parts=(
        (("ericsson2021",), ("logreg-ericsson", "core", "free", "ericsson2021-literal")),
        (
            ("ericsson2021-fewshot",),
            tuple(f"fewshot-{support}shot-ericsson" for support in (5, 20, 50)),
        ),
    ),
    trainings=("finetune-ericsson",),
    trained_on=("ericsson2021",),
    reference="finetune-ericsson",
)

if __name__ == "__main__":
    main(STUDY, __doc__ or "")
