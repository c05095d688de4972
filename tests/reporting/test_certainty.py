"""The sections on how sure findings are hold what the analyses they stand for say."""

import re
import shutil

import numpy as np
import pytest

from featstore.analysis.beside import compare_published
from featstore.analysis.correlate import correlate_protocols
from featstore.analysis.critical import critical_difference
from featstore.analysis.differences import compare_models
from featstore.analysis.families import family_gap
from featstore.analysis.forecast import forecast
from featstore.analysis.images import correlate_images
from featstore.analysis.influence import influence
from featstore.analysis.published import published
from featstore.analysis.stability import ranking_stability
from featstore.analysis.versus import compare_predictors
from featstore.errors import CorruptStoreError
from featstore.reporting.page import report
from featstore.reporting.text import coefficient, percent, probability, signed
from featstore.results import Cell, open_outcomes, open_results, record

from .pages import Page

MODELS = {  # backbone, paradigm, teacher, how good
    "simclr-cnn": ("cnn", "discriminative", "", 0.9),
    "swav-cnn": ("cnn", "discriminative", "", 1.0),
    "npid-cnn": ("cnn", "discriminative", "", 0.1),
    "dino-vit": ("vit", "discriminative", "", 1.4),
    "ibot-vit": ("vit", "discriminative", "", 1.38),
    "mae-vit": ("vit", "generative", "", 0.3),
    "eva-vit": ("vit", "generative", "clip", 0.6),
    "pixmim-vit": ("vit", "generative", "", 0.5),
}
DATASETS = {"home": 1.2, "edges": 0.2, "blur": 0.6}
PROTOCOLS = {  # kind, seconds, how much it differs by model
    "logreg": ("linear", 2.0, 0.0),
    "logreg-5shot": ("linear", 0.5, 0.3),
    "knn-marks": ("knn", 0.1, 0.15),
    "finetune-marks": ("finetune", 90.0, 0.2),
}
N = 300


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A small study with what was told of each test image; nothing in it was measured."""
    root = tmp_path_factory.mktemp("study") / "results"
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, N)
    for dataset, ease in DATASETS.items():
        hard = rng.normal(size=N)
        for model, (backbone, paradigm, teacher, merit) in MODELS.items():
            for protocol, (kind, seconds, own) in PROTOCOLS.items():
                push = merit + ease + own * rng.normal()
                right = push + rng.normal(size=N) > hard + 0.7
                share = float(right.mean())
                metric = {"value": share, "low": share - 0.03, "high": share + 0.03}
                facts = {
                    "metrics": {"top1": metric}, "n_train": 40, "n_test": N, "n_skipped": 0,
                    "n_categories": 4, "seconds": seconds, "certificate": {}, "headline": "top1",
                    "settings": {"kind": kind, "scale": "share"}, "transductive": False,
                    "splits": {}, "versions": {"featstore": "0.1.0"},
                    "model_info": {
                        "backbone": backbone, "family": "f", "paradigm": paradigm,
                        "method": model.split("-")[0], "stage": "late", "lineage": model,
                        "teacher": teacher, "pretraining": [], "bn_free": False,
                    },
                    "dataset_info": {
                        "shift": "in-domain" if dataset == "home" else dataset,
                        "metric": "top1", "source": dataset,
                    },
                }  # fmt: skip
                rows = {"index": np.arange(N), "label": labels, "rank": np.where(right, 0, 2)}
                record(root, Cell(model, dataset, "eval", protocol, 0, "a" * 64), facts, rows)
    return root


@pytest.fixture(scope="module")
def study(records):
    return open_results(records)


@pytest.fixture(scope="module")
def page(study, records, tmp_path_factory):
    place = tmp_path_factory.mktemp("report") / "r.html"
    return Page(report(study, place, records=records).read_text(encoding="utf-8"))


def number(cell):
    return float(cell[1])


def test_ranks_are_those_of_the_comparison_on_the_same_images(records, page):
    found = compare_models(records, dataset=list(DATASETS), protocol="logreg")
    _, body = page.rows("certainty-table")
    assert [row[0][0] for row in body] == found["model"].values.tolist()
    for row, name in zip(body, found["model"].values, strict=True):
        one = found.sel(model=name)
        for cell, key in zip(row[1:5], ("rank", "rank_low", "rank_high", "score"), strict=True):
            assert number(cell) == pytest.approx(one[key].item())
        limits = [percent(one[f"score_{end}"].item()) for end in ("low", "high")]
        assert row[4][0].endswith(f"[{limits[0]}, {limits[1]}]")
        assert row[5][0] == ("no" if one["separable_from_best"] else "yes")
    n = int((~found["separable_from_best"]).sum())
    assert 1 < n < len(MODELS)
    assert f"{n} of {len(MODELS)} models cannot be told from the best" in page.text


def test_critical_differences_are_told_with_friedmans_test(study, page):
    found = critical_difference(study, protocol="logreg")
    assert f"further apart than {found.attrs['critical_difference']:.2f}" in page.text
    assert f"p = {found.attrs['p']:.2g}" in page.text


def test_without_records_the_page_says_what_it_would_take(study, tmp_path):
    bare = Page(report(study, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "that takes the records of the cells" in bare.text
    assert "certainty-table" not in bare.tables
    assert "images-table" not in bare.tables
    assert "stability-images" not in bare.tables
    assert "stability-datasets" in bare.tables


@pytest.mark.parametrize("over", ["datasets", "labels", "images"])
def test_stability_is_that_of_datasets_labels_and_images(study, records, page, over):
    data = open_outcomes(records, dataset="home") if over == "images" else study
    found = ranking_stability(data, protocol="logreg", over=over)
    _, body = page.rows(f"stability-{over}")
    assert [number(row[0]) for row in body] == found["size"].values.tolist()
    columns = ("same_top", "overlap", "kendall", "spearman")
    for column, key in zip(range(1, 5), columns, strict=True):
        np.testing.assert_array_equal([number(row[column]) for row in body], found[key].values)


def test_gaps_of_families_stand_before_and_after_their_backbones(study, page):
    found = family_gap(study)
    _, body = page.rows("gap-table")
    assert len(body) == len(PROTOCOLS)
    for row in body:
        one = found.sel(protocol=row[0][0])
        for cell, key in zip(row[1:4], ("pooled", "within", "explained"), strict=True):
            assert number(cell) == pytest.approx(one[key].item())
            assert f"[{signed(one[f'{key}_low'].item())}, " in cell[0]
        assert [number(cell) for cell in row[4:6]] == [one["p"].item(), one["p_smallest"].item()]
    head, counts = page.rows("gap-counts")
    assert head == ["Models", "cnn", "vit"]
    assert [cell[0] for cell in counts[0]] == ["discriminative", "3", "2"]
    assert [cell[0] for cell in counts[1]] == ["generative", "0", "3 (1 taught by CLIP)"]


def test_forecasts_stand_beside_the_naive_ones(study, page):
    _, body = page.rows("forecasts-table")
    assert len(body) == 4
    for number_of, (leave, baseline) in enumerate(
        (leave, one) for leave in ("model", "dataset") for one in ("mean", "in-domain")
    ):
        one = forecast(study, target="finetune-marks", leave=leave).sel(baseline=baseline)
        row = body[number_of]
        assert row[0][0] == f"each {leave}"
        expected = [one[key].item() for key in ("skill", "mae_mean", "mae_naive_mean")]
        np.testing.assert_allclose([number(cell) for cell in row[2:5]], expected)


def test_agreement_on_other_images_stands_beside_that_on_the_same(records, page):
    found = correlate_images(records, datasets=["home"], resamples=500).sel(dataset="home")
    _, body = page.rows("images-table")
    assert len(body) == 6
    for row in body:
        pair = found.sel(protocol=row[0][0], other=row[1][0])
        keys = ("pearson", "pearson_same_half", "pearson_split", "pearson_disattenuated")
        np.testing.assert_array_equal(
            [number(cell) for cell in row[2:6]], [pair[key].item() for key in keys]
        )
    pairs = found["pearson_same_half"] - found["pearson_split"]
    shared = np.median(pairs.values[np.triu_indices(4, 1)])
    assert f"r is {coefficient(shared)} lower there than with both on one half" in page.text
    _, own = page.rows("reliability-table")
    for row in own:
        pair = found.sel(protocol=row[0][0], other=row[0][0])
        assert number(row[1]) == pair["pearson_split"].item()


def test_predictors_say_how_far_the_best_is_ahead(study, page):
    found = compare_predictors(study, "finetune-marks")
    head, body = page.rows("predictors-1")
    assert head[3:5] == ["ρ behind the best", "p, Holm"]
    best = body[0][0][0]
    assert [cell[0] for cell in body[0][3:5]] == ["–", "–"]
    for row in body[1:]:
        pair = found.sel(protocol=best, other=row[0][0])
        assert number(row[3]) == pair["difference"].item()
        assert row[3][0].endswith(
            f"[{coefficient(pair['low'].item())}, {coefficient(pair['high'].item())}]"
        )
        assert row[4][0] == probability(pair["p_holm"].item())


def test_pairs_that_hang_on_a_model_say_on_which(study, page):
    found = influence(study)
    _, body = page.rows("hinges-table")
    assert len(body) == 6
    changes = []
    for row in body:
        pair = found.sel(protocol=row[0][0], other=row[1][0])
        most = pair["model"].values[np.abs(pair["pearson_change"].values).argmax()]
        assert row[2][0] == most
        assert number(row[4]) == pair["pearson"].sel(model=most).item()
        assert number(row[5]) == pair["pearson_change"].sel(model=most).item()
        assert number(row[4]) - number(row[3]) == pytest.approx(number(row[5]))
        changes.append(abs(number(row[5])))
    assert changes == sorted(changes, reverse=True)


@pytest.mark.parametrize("protocol", ["logreg", "knn-marks"])  # of which sections read either
def test_damaged_predictions_end_the_report_unless_told_to_leave_them_out(
    records, tmp_path, caplog, protocol
):
    root = tmp_path / "results"
    shutil.copytree(records, root)
    (kept,) = root.glob(f"swav-cnn/home/eval/{protocol}/*.npz")
    kept.write_bytes(kept.read_bytes()[:-1])
    results, place = open_results(root), tmp_path / "r.html"
    with pytest.raises(CorruptStoreError, match=re.escape(str(kept))):
        report(results, place, records=root)
    assert not place.exists()
    report(results, place, records=root, skip_errors=True)
    assert f"left out: {kept}" in caplog.text
    page = Page(place.read_text(encoding="utf-8"))
    ranked = {row[0][0] for row in page.rows("certainty-table")[1]}
    assert {*MODELS} - ranked == ({"swav-cnn"} if protocol == "logreg" else set())
    assert "images-table" in page.tables


def test_what_are_no_results_is_not_reported(study, tmp_path):
    for wrong, message in (
        (study.drop_vars("seconds"), "they lack seconds"),
        (study.expand_dims(seed=[0]), "have a dim seed"),
        (study.assign(score=study["score"] * 100), "Divide percent by 100"),
    ):
        with pytest.raises(ValueError, match=message):
            report(wrong, tmp_path / "r.html")


def test_pairs_stand_with_the_backbone_held_fixed(study, page):
    _, body = page.rows("partials-table")
    assert len(body) == 6
    for column, partial in ((2, ""), (3, "backbone")):
        found = correlate_protocols(study, partial=partial, by_dataset=False)
        for row in body:
            pair = found.sel(protocol=row[0][0], other=row[1][0])
            assert number(row[column]) == pytest.approx(pair["pearson"].item())
            low, high = (coefficient(pair[f"pearson_{end}"].item()) for end in ("low", "high"))
            assert row[column][0].endswith(f"[{low}, {high}]")


def test_models_taught_by_clip_are_named(page):
    assert "whatever the family says: eva-vit." in page.text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0238, ".024"), (1.0, "1"), (0.0004, "< .001"), (np.nan, "–")]
)
def test_probabilities_are_short(value, text):
    assert probability(value) == text


def test_own_numbers_stand_beside_published_ones(tmp_path):
    results = published("ericsson2021").sel(protocol=["logreg-ericsson", "finetune-ericsson"])
    results = results.sel(dataset=["cifar10", "dtd", "voc2007"], bn_mode=["eval"])
    moved = results.assign(
        {name: results[name] - 0.01 for name in ("score", "top1", "map11")}
        | {f"{name}_{end}": results[name] + by
           for name in ("top1", "map11") for end, by in (("low", -0.03), ("high", 0.005))}
    )  # fmt: skip
    page = Page(report(moved, tmp_path / "r.html").read_text(encoding="utf-8"))
    found = compare_published(moved, "ericsson2021")
    _, body = page.rows("beside-ericsson2021")
    assert len(body) == 14 * 3 * 2
    for row in body:
        model, dataset, protocol = (cell[0] for cell in row[:3])
        one = found.sel(model=model, dataset=dataset, protocol=protocol)
        for cell, key in zip(row[3:6], ("ours", "theirs", "difference"), strict=True):
            assert number(cell) == one[key].item()
        assert number(row[5]) == pytest.approx(-0.01)
        assert row[6][0] == ("yes" if one["inside"] else "no") == "yes"
    assert "84 cells are in both, 1.0 points apart on average" in page.text
    assert "Of 84 with an interval of ours, theirs lies inside in 84" in page.text
