"""Benchmarks run at tiny sizes and say what they measured; how fast anything is is not asked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "pipelines" / "benchmarks"
NAMES = ("neighbours", "logistic", "ridge", "episodes", "heads", "bootstrap", "store", "extraction")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_says_what_it_measured_beside_what(name, tmp_path):
    out = tmp_path / "cpu.json"
    done = subprocess.run(
        [sys.executable, SCRIPTS / "all.py", "--small", "--only", name, "--out", out],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert document["machine"]["cores"] >= 1
    assert list(document["rows"]) == [name]
    for row in document["rows"][name]:
        assert row["ratio"] == pytest.approx(row["seconds"] / row["baseline_seconds"])
        assert row["what"] in done.stdout
        assert row["baseline"] in done.stdout


def test_every_script_that_measures_is_run_by_all():
    others = {"all", "common", "protocols", "finetune", "gpu", "backbones"}
    assert {path.stem for path in SCRIPTS.glob("*.py")} == others | set(NAMES)
