"""What each protocol off the store costs on one model and dataset, by itself.

    python pipelines/benchmarks/protocols.py [--rows 4000] [--width 768] [--categories 50]

Made-up features, a quarter as many test rows, seconds of one run each, from the cheapest to the
dearest. In a sweep they cost less, since neighbour lists and Gram matrices are shared. Protocols
that need what plain arrays have not, such as augmented views, are named at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from common import clusters

import featstore

SETS = ("core", "free", "kshot", "dino", "marks2024", "linear-dinov2", "ericsson2021",
        "ericsson2021-literal")  # fmt: skip

APART = 0.15  # so that linear probes are right about as often as on real features


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--categories", type=int, default=50)
    parser.add_argument("--protocols", nargs="+", default=SETS)
    parser.add_argument("--out", type=Path, default=Path("data/bench-protocols.json"))
    arguments = parser.parse_args()
    sizes = arguments.width, arguments.categories
    x, y = clusters(arguments.rows, *sizes, apart=APART)
    z, t = clusters(arguments.rows // 4, *sizes, apart=APART, seed=1)
    seconds: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for protocol in featstore.probes.expand(arguments.protocols):
        begun = time.perf_counter()
        try:
            featstore.score(x, y, z, t, protocol=protocol)
        except featstore.FeatStoreError as error:
            left_out[protocol] = str(error)
        else:
            seconds[protocol] = time.perf_counter() - begun
            print(f"{protocol:36}{seconds[protocol]:9.2f} s", flush=True)
    found = featstore.score(x, y, z, t, protocol="ridge")["top1"]["value"]
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    print(f"\n{arguments.rows} train rows x {arguments.width}, {arguments.categories} categories, "
          f"ridge is right on {found:.0%} of test, {threads} threads")  # fmt: skip
    for protocol, error in left_out.items():
        print(f"left out {protocol}: {error}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(vars(arguments) | {"out": "", "seconds": seconds}))
    print(f"-> {arguments.out}")


if __name__ == "__main__":
    main()
