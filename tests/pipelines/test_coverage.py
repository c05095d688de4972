"""The simulation of coverage: its coefficients and draws, and the table that is committed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "pipelines" / "benchmarks" / "coverage.py"
WHOLE = json.loads((ROOT / "data" / "benchmarks" / "coverage.json").read_text())["rows"]


@pytest.fixture(scope="module")
def coverage():
    spec = importlib.util.spec_from_file_location("simulated_coverage", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_coefficients_of_a_draw_are_scipys_of_the_models_drawn(coverage):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 8))
    drawn = rng.integers(0, 8, (5, 8))
    weights = np.stack([np.bincount(row, minlength=8) for row in drawn]).astype(float)
    found = coverage.coefficients(x, y, weights)
    tests = {
        "pearson": stats.pearsonr,
        "spearman": stats.spearmanr,
        "kendall": stats.kendalltau,
    }
    for name, test in tests.items():
        expected = [[test(a[row], b[row]).statistic for row in drawn] for a, b in zip(x, y)]  # noqa: B905
        np.testing.assert_allclose(found[name], expected, atol=1e-12)


@pytest.mark.parametrize("population", ["normal", "t5", "saturated", "lineages"])
def test_a_sample_has_the_coefficients_that_are_called_true(coverage, population):
    shape = (4000, 20) if population == "lineages" else (1, 80_000)
    x, y = coverage.sample(population, 0.6, shape, np.random.default_rng(1))
    true = coverage.truths(population, 0.6, models=200_000)
    x, y = (one.reshape(-1) for one in (x, y))
    assert true["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic, abs=0.02)
    assert true["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, abs=0.02)
    assert true["kendall"] == pytest.approx(stats.kendalltau(x, y).statistic, abs=0.02)


def test_models_go_together_across_datasets_and_protocols_on_each(coverage):
    pairs = coverage.samples("datasets", 0.6, (4000, 5), np.random.default_rng(3))
    assert len(pairs) == coverage.DATASETS
    (x, y), (other, _) = pairs[:2]
    assert np.corrcoef(x.ravel(), y.ravel())[0, 1] == pytest.approx(0.6, abs=0.03)
    found = np.corrcoef(x.ravel(), other.ravel())[0, 1]
    assert found == pytest.approx(coverage.ALIKE_ACROSS, abs=0.03)
    assert len(coverage.samples("t5", 0.6, (2, 9), np.random.default_rng(3))) == 1


def test_models_of_a_lineage_go_together(coverage):
    x, y = coverage.sample("lineages", 0.6, (4000, 20), np.random.default_rng(2))
    for one in (x, y):
        assert np.corrcoef(one[:, 0], one[:, 1])[0, 1] == pytest.approx(coverage.ALIKE, abs=0.03)
        assert np.corrcoef(one[:, 0], one[:, 2])[0, 1] == pytest.approx(0, abs=0.05)


@pytest.mark.slow
def test_the_script_says_what_it_writes(tmp_path):
    out = tmp_path / "coverage.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--small", "--out", out],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    key = ("method", "population", "n", "r", "statistic")
    assert {tuple(row[k] for k in key) for row in rows} == {
        tuple(row[k] for k in key) for row in WHOLE
    }
    assert all(f"{100 * row['coverage']:.1f} ({row['width']:.2f})" in done.stdout for row in rows)


def coverages(method, statistic, population, sizes):
    found = [
        row["coverage"]
        for row in WHOLE
        if (row["method"], row["statistic"], row["population"]) == (method, statistic, population)
        and row["n"] in sizes
        and row["r"] > 0
    ]
    assert len(found) == 3 * len(sizes)
    return np.array(found)


@pytest.mark.parametrize("statistic", ["pearson", "spearman", "kendall"])
def test_the_default_covers_what_it_says_in_the_committed_table(statistic):
    found = coverages("jackknife", statistic, "normal", (14, 26))
    assert np.all((found > 0.93) & (found < 0.97))
    by_lineage = coverages("jackknife", statistic, "lineages", (20,))
    assert np.all((by_lineage > 0.93) & (by_lineage < 0.97))
    of_means = coverages("jackknife", statistic, "datasets", (14, 26))
    assert np.all((of_means > 0.93) & (of_means < 0.97))
    assert np.all(coverages("jackknife, each model a unit", statistic, "lineages", (20,)) < 0.955)


def test_the_table_has_why_fisher_and_the_bootstrap_are_no_default():
    assert np.all(coverages("percentile", "pearson", "normal", (9, 14)) < 0.93)
    assert np.all(coverages("fisher", "pearson", "t5", (14, 26)) < 0.91)
    assert np.all(coverages("jackknife", "pearson", "t5", (14, 26)) > 0.93)
