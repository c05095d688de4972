"""All benchmarks of kernels and feeding, one after the other, as one table and one JSON.

    python pipelines/benchmarks/all.py [--small] [--only NAME ...] [--out data/benchmarks/cpu.json]

What they are measured beside comes with the extra `test`, which `make bench` installs. With
`--small` nothing is written unless `--out` says where. Each is a process of its own. Figures are
ratios of medians of runs that took turns in it, with the same number of threads on both sides;
machines differ, so nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from common import Row, machine, show

SCRIPTS = (
    "neighbours",
    "logistic",
    "ridge",
    "episodes",
    "heads",
    "bootstrap",
    "store",
    "extraction",
)
LIBRARIES = ("numpy", "torch", "scikit-learn", "faiss-cpu", "zarr", "zarrs")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that all run")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    parser.add_argument("--out", type=Path, help="[default: data/benchmarks/cpu.json]")
    arguments = parser.parse_args()
    out: Path | None = arguments.out
    if out is None and not arguments.small:
        out = Path("data/benchmarks/cpu.json")
    found: dict[str, list[dict[str, object]]] = {}
    if out is not None and out.exists() and arguments.only != SCRIPTS:
        found = json.loads(out.read_text())["rows"]
    for name in arguments.only:
        found[name] = run(name, small=arguments.small)
    if out is not None:
        libraries = {name: version(name) for name in LIBRARIES}
        document = {"machine": machine(), "versions": libraries, "rows": found}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1) + "\n")
    for name in (one for one in SCRIPTS if one in found):
        print(f"\n{name}")
        show([
            Row(**{k: v for k, v in row.items() if k != "ratio"})  # type: ignore[arg-type]
            for row in found[name]
        ])  # fmt: skip
    print(f"-> {out or 'written nowhere: of tiny sizes, these say nothing'}")


def run(name: str, *, small: bool) -> list[dict[str, object]]:
    """Rows of one script."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        script = Path(__file__).with_name(f"{name}.py")
        command = [sys.executable, str(script), "--json", str(out), *["--small"] * small]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows: list[dict[str, object]] = json.loads(out.read_text())
    return rows


if __name__ == "__main__":
    main()
