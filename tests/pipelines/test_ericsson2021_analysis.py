"""The paper's analysis from its own tables, against what it prints and plain arithmetic on them."""

import csv
import importlib
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, rankdata, spearmanr

import featstore
from featstore.analysis.published import published, published_study

from .conftest import PIPELINES

FILES = PIPELINES.parent / "data" / "published" / "ericsson2021"
# Table 9 of arXiv:2011.13377v2, the line of coefficients below its columns.
PRINTED = {
    ("many_shot_linear", "ECE_unscaled_pct"): -0.77,
    ("many_shot_linear", "ECE_temp_scaled_pct"): -0.59,
    ("many_shot_finetune", "ECE_unscaled_pct"): -0.90,
    ("many_shot_finetune", "ECE_temp_scaled_pct"): -0.59,
    ("reconstruction", "LPIPS_AlexNet"): -0.51,
    ("reconstruction", "LPIPS_VGG"): -0.69,
    ("reconstruction", "LPIPS_SqueezeNet"): -0.57,
    ("reconstruction", "mse_red"): -0.56,
    ("reconstruction", "mse_green"): -0.11,
    ("reconstruction", "mse_blue"): -0.22,
    ("occlusion_attention", "attentive_diffusion_pct"): 0.09,
}


def logit(share):
    return np.log(share / (1 - share))


def column(file, **place):
    """Numbers of a file by their authors' model names, and half a unit of the last digit."""
    rows = [
        row
        for row in csv.DictReader((FILES / file).read_text(encoding="utf-8").splitlines())
        if all(row[key] == value for key, value in place.items())
    ]
    assert len(rows) == 14
    rows.sort(key=lambda row: row["model"])
    digits = max(len(row["value"].partition(".")[2]) for row in rows)
    return np.array([float(row["value"]) for row in rows]), 0.5 * 10.0**-digits


@pytest.fixture(scope="module")
def paper():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PIPELINES)
        yield importlib.import_module("ericsson2021_analysis")


@pytest.fixture(scope="module")
def tables():
    return published("ericsson2021")


@pytest.fixture(scope="module")
def imagenet():
    share, _ = column("table1_many_shot.csv", dataset="ImageNet")
    return logit(share / 100)


def test_the_eleven_coefficients_are_those_printed(paper, tables):
    found = paper.table_9(tables)
    assert [*found["printed"]] == [*PRINTED.values()]
    apart = abs(found["pearson"] - found["printed"])
    # Half a unit of the last digit; -.595 was printed as -.59, and LPIPS has two digits.
    beyond = apart[apart > 0.005]
    assert {*beyond.index} == {"ECE, fine-tuned, temperature-scaled", "LPIPS, AlexNet"}
    assert beyond["ECE, fine-tuned, temperature-scaled"] < 0.006
    assert beyond["LPIPS, AlexNet"] < 0.02


@pytest.mark.parametrize(("protocol", "metric"), list(PRINTED))
def test_each_coefficient_is_that_of_the_columns_and_within_their_rounding_of_the_printed(
    paper, tables, imagenet, protocol, metric
):
    value, half = column("table9_analysis.csv", protocol=protocol, metric=metric)
    share = 100 if metric.endswith("pct") else 1

    def scaled(numbers):
        return numbers if metric.startswith("mse") else logit(numbers / share)

    place = list(PRINTED).index((protocol, metric))
    found = paper.table_9(tables).iloc[place]
    assert found["pearson"] == pytest.approx(pearsonr(imagenet, scaled(value))[0])
    assert found["spearman"] == pytest.approx(spearmanr(imagenet, scaled(value))[0])
    assert found["pearson_low"] < found["pearson"] < found["pearson_high"]
    assert found["n"] == 14
    rng = np.random.default_rng(0)
    moved = [
        pearsonr(imagenet, scaled(value + half * rng.uniform(-1, 1, 14)))[0] for _ in range(2000)
    ]
    printed = PRINTED[protocol, metric]
    assert min(moved) - 0.005 <= printed <= max(moved) + 0.005


def test_groups_are_means_of_logits_over_their_datasets(paper, tables, imagenet):
    groups = paper.grouped(tables)
    values = groups["score"].squeeze(["dataset", "bn_mode"]).to_pandas()
    assert values.shape == (14, 9)
    order = [ours for _, ours in sorted(published_study("ericsson2021").models.items())]
    names = ["Aircraft", "Caltech101", "Cars", "CIFAR10", "CIFAR100", "DTD", "Flowers", "Food",
             "Pets", "SUN397", "VOC2007"]  # fmt: skip
    for group, protocol in (("linear", "many_shot_linear"), ("fine-tuned", "many_shot_finetune")):
        logits = [
            logit(column("table1_many_shot.csv", dataset=one, protocol=protocol)[0] / 100)
            for one in names
        ]
        np.testing.assert_allclose(values[f"many-shot, {group}"][order], np.mean(logits, axis=0))
    file = "tables2_3_6_7_8_few_shot.csv"
    cdfsl = [
        logit(column(file, dataset=one, protocol="few_shot_5way_20shot")[0] / 100)
        for one in ("CropDiseases", "EuroSAT", "ISIC", "ChestX")
    ]
    np.testing.assert_allclose(values["few-shot, CD-FSL"][order], np.mean(cdfsl, axis=0))
    degrees, _ = column("table5_dense.csv", metric="mean_angular_error_deg")
    np.testing.assert_allclose(values["surface normals"][order], -degrees)
    miou, _ = column("table5_dense.csv", metric="mIoU")
    np.testing.assert_allclose(values["segmentation"][order], logit(miou))
    matrix = featstore.correlate_protocols(groups, by_dataset=False)["pearson"]
    for name in ("surface normals", "segmentation", "many-shot, linear"):
        r = pearsonr(imagenet, values[name][order])[0]
        assert matrix.sel(protocol="ImageNet", other=name).item() == pytest.approx(r)


def test_settings_hold_every_metric_of_every_dataset(paper, tables, imagenet):
    found = paper.every_setting(tables)
    assert len(found) == 11 + 11 + (10 + 4) + (10 + 4) + (7 + 4) + 3 + 3 + 5 + 2
    value, _ = column("table5_dense.csv", metric="median_angular_error_deg")
    normals = found.loc["normals-frozen", "nyuv2_normals", "median_angular_error"]
    assert normals["pearson"] == pytest.approx(pearsonr(imagenet, -value)[0])
    assert normals["pearson_low"] < normals["pearson"] < normals["pearson_high"]
    assert normals["spearman_low"] < normals["spearman"] < normals["spearman_high"]
    value, _ = column("table4_detection.csv", metric="AP50", protocol="detection_frozen")
    detection = found.loc["detection-frozen", "voc_detection", "ap50"]
    assert detection["pearson"] == pytest.approx(pearsonr(imagenet, logit(value / 100))[0])


def test_places_are_ranks_of_the_groups_values(paper, tables):
    groups = paper.grouped(tables)
    places = paper.ranking(groups)
    degrees, _ = column("table5_dense.csv", metric="mean_angular_error_deg")
    methods = {ours: str(m) for ours, m in groups["method"].to_series().items()}
    order = [methods[ours] for _, ours in sorted(published_study("ericsson2021").models.items())]
    np.testing.assert_array_equal(places["surface normals"][order], rankdata(degrees))
    assert places["mean"].is_monotonic_increasing
    # Of 11 datasets by linear probes, ten are led by a self-supervised model (table 1, in bold).
    assert paper.beats_supervision(tables)["many-shot, linear"] == (10, 11)


@pytest.mark.slow
def test_the_script_writes_page_tables_and_figures(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", PIPELINES / "ericsson2021_analysis.py", "--out", "out"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "LPIPS, AlexNet" in done.stdout
    page = (tmp_path / "out" / "analysis.md").read_text(encoding="utf-8")
    figures = re.findall(r"\]\((\w+)\.svg\)", page)
    assert figures == ["imagenet", "groups", "places", "settings"]
    for name in figures:
        assert (tmp_path / "out" / f"{name}.svg").stat().st_size > 10_000
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 10_000
    assert not re.search(r"\bnan\b", page + done.stdout, re.IGNORECASE)
    numbers = pd.read_csv(tmp_path / "out" / "the-coefficients-of-table-9.csv", index_col=0)
    np.testing.assert_allclose(numbers["printed"], list(PRINTED.values()))
    assert (abs(numbers["pearson"] - numbers["printed"]) < 0.02).all()
    for cell in numbers["pearson"]:
        assert f"| {cell:.2f} [" in page
