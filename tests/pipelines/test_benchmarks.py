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


@pytest.mark.slow
def test_the_benchmark_of_analyses_says_what_it_measured_beside_what(tmp_path):
    out = tmp_path / "analyses.json"
    command = [sys.executable, "-W", "error", SCRIPTS / "analyses.py", "--small", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    assert {row["what"].partition(",")[0] for row in rows} >= {
        *("open results.zarr", "open_results", "statistics", "report", "compare_models"),
        "text_table",
    }
    for row in rows:
        assert row["ratio"] == pytest.approx(row["seconds"] / row["baseline_seconds"])
        assert row["what"] in done.stdout


def test_every_script_that_measures_is_run_by_all():
    others = {"all", "common", "made_up", "analyses", "coverage", "protocols", "finetune", "gpu"}
    others |= {"backbones"}
    assert {path.stem for path in SCRIPTS.glob("*.py")} == others | set(NAMES)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_readme_has_the_ratios_that_were_measured(name):
    measured = json.loads((ROOT / "data" / "benchmarks" / f"{name}.json").read_text())["rows"]
    ratios = [row["ratio"] for rows in measured.values() for row in rows]
    table = (ROOT / "README.md").read_text().partition("## How fast its kernels are")[2]
    heads = {"cpu": "| | ours | beside |", "gpu": "| on an H200"}
    lines = table[table.index(heads[name]) :].partition("\n\n")[0].splitlines()[2:]
    printed = [text for line in lines for text in line.split("|")[-2].split(";")]
    assert len(printed) >= 4
    for text in map(str.strip, printed):
        half = 0.5 * 10.0 ** -len(text.partition(".")[2])
        assert any(abs(float(text) - ratio) <= half * 1.001 for ratio in ratios), text


@pytest.mark.parametrize("statistic", ["pearson", "spearman", "kendall"])
@pytest.mark.parametrize("population", ["normal", "saturated"])
def test_the_readme_has_the_coverage_that_was_simulated(statistic, population):
    rows = json.loads((ROOT / "data" / "benchmarks" / "coverage.json").read_text())["rows"]
    readme = (ROOT / "README.md").read_text()
    methods = (
        {"jackknife", "fisher", "bca", "percentile"} if statistic == "pearson" else {"jackknife"}
    )
    if population == "saturated":
        methods = {"jackknife", "fisher"} if statistic == "pearson" else set()
    found = {
        (row["method"], row["n"], row["r"]): f"{100 * row['coverage']:.1f}"
        for row in rows
        if (row["statistic"], row["population"]) == (statistic, population)
    }
    for method in methods:
        told = [" / ".join(found[method, n, r] for r in (0.3, 0.6, 0.9)) for n in (14, 26)]
        assert f"| {told[0]} | {told[1]} |" in readme, method


def test_the_readme_has_the_seconds_of_analyses_that_were_measured():
    rows = json.loads((ROOT / "data" / "benchmarks" / "analyses.json").read_text())
    readme = (ROOT / "README.md").read_text()
    told = {
        "open results.zarr, 30,000 cells", "open_results, 30,000 records",
        "statistics, all of these", "report, 26 x 11 x 3 x 10", "report, 50 x 30 x 1 x 20",
        "compare_models, 26 x 50,000, 2,000 resamples",
    }  # fmt: skip
    for row in rows:
        if row["what"] in told:
            seconds = row["seconds"]
            assert (f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s") in readme
            told.remove(row["what"])
    assert not told
