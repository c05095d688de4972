"""The report as a browser would read it: numbers, links, and what thin results leave of it."""

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from featstore.analysis.batchnorm import backbone_bn, head_bn
from featstore.analysis.calibration import calibration_errors
from featstore.analysis.compare import compare_protocols
from featstore.analysis.correlate import correlate_domains, correlate_protocols
from featstore.analysis.predict import predictors
from featstore.analysis.rank import rank_models
from featstore.analysis.similarity import bn_displacement
from featstore.reporting.page import report
from featstore.reporting.text import (
    breakable,
    coefficient,
    count,
    duration,
    on_lines,
    percent,
    signed,
    signed_coefficient,
    tenths,
)

from .pages import Page

NAMESPACE = "http://www.w3.org/2000/svg"  # a name that is never loaded


@pytest.fixture(scope="module")
def path(results, tmp_path_factory):
    return report(results, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def page(path):
    return Page(path.read_text(encoding="utf-8"))


def ends(one, name, show, rest=""):
    """A number with its interval, as a cell of a table has them."""
    numbers = [show(one[f"{name}{end}{rest}"].item()) for end in ("", "_low", "_high")]
    return numbers[0] + (f"[{numbers[1]}, {numbers[2]}]" if numbers[1] != "–" else "")


def addresses(text):
    return set(re.findall(r"\w+://[^\s\"'<>;]*", text))


def without(results, **place):
    """Results in which cells were never measured."""
    holed = results.copy(deep=True)
    for name in ("score", "n_test", "seconds"):
        holed[name].loc[place] = np.nan
    return holed


def make_page(results, tmp_path):
    return Page(report(results, tmp_path / "r.html").read_text(encoding="utf-8"))


def test_the_ranking_table_holds_the_ranking(results, page):
    ranking = rank_models(results)
    head, body = page.rows("ranking-table")
    assert head[:5] == ["Model", "Place", "Mean rank", "Mean score", "Cells"]
    assert len(body) == 15
    for row, model in zip(body, ranking["model"].values, strict=True):
        one = ranking.sel(model=model)
        assert row[0][0].split()[0] == model
        assert ("early" in row[0][0].split()) == (one["stage"].item() == "early")
        assert row[1][0] == (f"{one['place'].item():.0f}" if one["independent"] else "–")
        assert row[2][0] == f"{one['mean_rank'].item():.1f}"
        assert row[3][0] == f"{100 * one['mean_score'].item():.1f}"
        assert float(row[3][1]) == one["mean_score"].item()
        assert int(row[4][0]) == one["n_cells"]
        np.testing.assert_allclose([float(cell[1]) for cell in row[7:]], one["score"].values)
    assert "(6)" in body[[row[0][0] for row in body].index("mae-cnn")][7 + 8][0]


def test_the_tables_of_correlations_hold_the_coefficients(results, page):
    head, body = page.rows("pairs-table")
    assert len(body) == 55
    tables = [
        correlate_protocols(results, models=models, by_dataset=False)
        for models in ("independent", "all")
    ]
    for row in body:
        a, b = (cell[0].replace(" †", "") for cell in row[:2])
        for start, table in zip((2, 6), tables, strict=True):
            pair = table.sel(protocol=a, other=b)
            for offset, k in enumerate(("pearson", "spearman", "kendall")):
                assert row[start + offset][0] == ends(pair, k, coefficient)
            assert int(row[start + 3][0]) == pair["n"]

    head, body = page.rows("domains-table")
    domains = correlate_domains(results)
    assert head[1:-1] == ["Mean", *domains["dataset"].values]
    for row, protocol in zip(body, domains["protocol"].values, strict=True):
        one = domains.sel(protocol=protocol)
        assert float(row[1][1]) == one["pearson_mean"].item()
        np.testing.assert_allclose([float(cell[1]) for cell in row[2:-1]], one["pearson"].values)


def test_the_summary_says_the_numbers_of_the_dataset(results, page):
    ranking = rank_models(results)
    best = ranking.isel(model=0)
    assert f"{best['model'].item()} ranks first" in page.text
    by_logreg = best.sel(protocol="logreg")
    low, high = (f"{100 * by_logreg[end].item():.1f}" for end in ("low", "high"))
    assert f"it scores {100 * by_logreg['score'].item():.1f} [{low}, {high}]" in page.text

    table = correlate_protocols(results, by_dataset=False)
    r = table["pearson"].where(~np.eye(11, dtype=bool))
    for word, value in (("most", r.max()), ("least", r.min())):
        assert f"agree {word}, r = {value.item():.2f}" in page.text
    predictor = correlate_domains(results)["pearson_mean"]
    name = predictor["protocol"].values[np.argmax(predictor.values)]
    assert f"by {name} have the highest correlation" in page.text
    assert f"mean r = {predictor.max().item():.2f}" in page.text
    with_bn = results["score"].sel(model=~results["bn_free"])
    for mode in ("batch", "adapt"):
        change = with_bn.sel(bn_mode=mode) - with_bn.sel(bn_mode="eval")
        late = change.sel(model=change["stage"].isin(["late", ""]))
        by_protocol = late.mean(["model", "dataset"])
        mean, lowest = by_protocol.mean().item(), by_protocol.min().item()
        assert f"to {100 * by_protocol.max().item():+.1f}" in page.text
        assert f"by protocol from {100 * lowest:+.1f}".replace("-", "\u2212") in page.text
        marked = {"batch": "batch †", "adapt": "adapt"}[mode]
        assert f"BN mode {marked} instead of eval changes" in page.text
        assert f"by {100 * mean:+.1f} points on average" in page.text


def test_cells_of_models_without_batchnorm_are_counted_and_paid_for_once(results, page):
    distinct = results.sel(model=~results["bn_free"])
    free = results.sel(model=results["bn_free"], bn_mode="eval")
    n = int(distinct["score"].count() + free["score"].count())
    assert f"{n:,} cells measured of 2,541" in page.text
    _, body = page.rows("cost-table")
    for row, protocol in zip(body, results["protocol"].values, strict=True):
        parts = [one["seconds"].sel(protocol=protocol).values.ravel() for one in (distinct, free)]
        times = np.concatenate(parts)
        assert float(row[4][1]) == pytest.approx(np.nansum(times))
        assert float(row[2][1]) == pytest.approx(np.nanmedian(times))


def test_every_missing_cell_is_in_the_table_of_missing_cells(results, page):
    _, body = page.rows("missing-table")
    assert sum(int(row[4][0]) for row in body) == int(results["score"].isnull().sum())
    assert ["random-cnn", "digits-inverted", "adapt", "all 11", "11"] in [
        [cell[0] for cell in row] for row in body
    ]


def test_the_bn_table_holds_the_change_of_each_model(results, page):
    head, body = page.rows("bn-table")
    assert head == ["Model", "batch † − eval", "adapt − eval"]
    for row in body:
        scores = results["score"].sel(model=row[0][0])
        for cell, mode in zip(row[1:], ("batch", "adapt"), strict=True):
            change = scores.sel(bn_mode=mode) - scores.sel(bn_mode="eval")
            assert float(cell[1]) == pytest.approx(change.mean().item())


def test_pictures_carry_their_numbers_as_text_and_a_description(results, page):
    pictures = [attrs for tag, attrs in page.elements if tag == "svg" and "role" in attrs]
    of_new = 5  # front, critical differences, stability, two forecasts
    assert len(pictures) == 10 + 6 + 1 + of_new
    assert all(len(attrs["aria-label"]) > 30 for attrs in pictures)
    assert "digits-texture (%)" in page.text


def test_every_score_stands_in_a_table_of_its_protocol(results, page):
    order = rank_models(results)["model"].values
    for protocol in results["protocol"].values:
        head, body = page.rows(f"heat-{protocol}")
        assert head == ["Model", *results["dataset"].values]
        cells = results["score"].sel(protocol=protocol, bn_mode="eval", model=order).values
        for row, model, values in zip(body, order, cells, strict=True):
            assert row[0][0].split()[0] == model
            expected = ["–" if np.isnan(one) else f"{100 * one:.1f}" for one in values]
            assert [cell[0] for cell in row[1:]] == expected


def test_every_coefficient_stands_in_a_table_of_all_protocols(results, page):
    for models in ("independent", "all"):
        table = correlate_protocols(results, models=models, by_dataset=False)
        for statistic in ("pearson", "spearman", "kendall"):
            head, body = page.rows(f"map-{statistic}-{models}")
            assert len(head) == 12
            found = [[float(cell[0]) for cell in row[1:]] for row in body]
            np.testing.assert_allclose(found, table[statistic].values, atol=0.0051)


def test_nothing_is_loaded_and_every_link_has_its_target(path, page):
    text = path.read_text(encoding="utf-8")
    assert addresses(text) == {NAMESPACE}
    assert not re.search(r"@import|src=|<link", text)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text)
    assert {a or b for a, b in targets} <= set(ids)
    assert path.stat().st_size < 2_500_000


def test_every_column_can_be_sorted_with_the_keyboard(page):
    heads = [
        i
        for i, (tag, attrs) in enumerate(page.elements)
        if attrs.get("scope") == "col" and attrs.get("class") != "up"  # a map keeps its order
    ]
    assert len(heads) > 40
    assert all(page.elements[i + 1][0] == "button" for i in heads)
    regions = [attrs for _, attrs in page.elements if "wide" in attrs.get("class", "").split()]
    assert len(regions) > 20
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in regions)


def test_the_same_results_give_the_same_bytes(results, path, tmp_path):
    again = report(results, tmp_path / "again.html")
    assert again.read_bytes() == path.read_bytes()


def test_a_dagger_marks_transductive_protocols(page):
    assert "knn-marks-zscore-own †" in page.text
    assert "† marks a protocol that sees all test images at once" in page.text


@pytest.fixture(scope="module")
def study(make_study):
    return make_study(2)


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    """The page of a study with fine-tunings, free scores and calibration."""
    place = tmp_path_factory.mktemp("report") / "study.html"
    return Page(report(study, place).read_text(encoding="utf-8"))


def test_protocols_stand_in_the_order_of_how_well_they_predict(study, whole):
    for number, target in enumerate(("finetune-marks", "finetune-marks-bn"), 1):
        found = predictors(study, target)
        head, body = whole.rows(f"predictors-{number}")
        tested = ["ρ behind the best", "p, Holm"] if number == 1 else []
        assert head == ["Protocol", "ρ", "r", *tested, "Seconds a cell", "Models", "Datasets"]
        for row, protocol in zip(body, found["protocol"].values, strict=True):
            one = found.sel(protocol=protocol)
            assert row[0][0].removesuffix(" †") == protocol
            assert row[1][0] == ends(one, "spearman", coefficient)
            assert row[2][0] == ends(one, "pearson", coefficient)
            assert row[-3][0] == duration(one["seconds"].item())
            assert [cell[0] for cell in row[-2:]] == ["9", "3"]
    best = found.sel(protocol="logme")
    assert np.isfinite(best["spearman"])  # no share, and ranks all the same
    assert "ranks models most as finetune-marks does" in whole.text


def test_without_a_fine_tuning_the_reference_is_predicted(results, page):
    assert "No fine-tuning was measured, so logreg stands for" in page.text
    _, body = page.rows("predictors-1")
    assert {row[0][0].removesuffix(" †") for row in body} == set(results["protocol"].values) - {
        "logreg"
    }


def test_the_table_of_calibration_holds_errors_before_and_after_scaling(study, whole):
    found = calibration_errors(study)
    head, body = whole.rows("calibration-table")
    assert head[1:4] == ["As it is", "Models", "Cells"]
    assert head[4:7] == ["Before scaling on test", "Scaled on test †", "Cells"]
    assert head[7:] == ["Before scaling on held-out", "Scaled on held-out images", "Cells"]
    for row, protocol in zip(body, found["protocol"].values, strict=True):
        one = found.sel(protocol=protocol)
        assert row[0][0].removesuffix(" †") == protocol
        assert row[1][0] == ends(one, "ece", percent)
        assert [int(cell[0]) for cell in row[2:4]] == [one["n_models"], one["n_cells"]]
        for start, name in ((4, "ece_scaled"), (7, "ece_scaled_val")):
            assert row[start][0] == ends(one, f"{name}_before", percent)
            assert row[start + 1][0] == ends(one, name, percent)
            assert int(row[start + 2][0]) == one[f"{name}_cells"]
    pictures = [attrs["aria-label"] for tag, attrs in whole.elements if "role" in attrs]
    assert sum("Accuracy over confidence" in one for one in pictures) == len(body) == 9


def test_the_tables_of_batchnorm_hold_what_it_changes(study, whole):
    found = backbone_bn(study)
    head, body = whole.rows("backbone-table")
    groups = {}
    for row in body:
        if len(row) == 1:  # a heading, of what follows
            rows = groups.setdefault(row[0][0], [])
        else:
            assert len(row) == len(head)
            rows.append(row)
    assert [name.partition("features")[0] for name in groups] == [
        "BN mode batch † instead of eval",
        "BN mode adapt instead of eval",
        "Backbone in train mode while the head is trained, instead of frozen",
    ]
    assert sum(map(len, groups.values())) == int((found["n_models"] > 0).sum())
    for change, rows in zip(("batch", "adapt", "train"), groups.values(), strict=True):
        for row in rows:
            name, _, after = row[0][0].partition(" → ")
            one = found.sel(change=change, protocol=name.removesuffix(" †"))
            assert name.endswith("†") == one["transductive"].item()
            assert after == ("linear-marks-literal" if change == "train" else "")
            assert row[1][0] == ends(one, "difference", signed)
            assert row[2][0] == ends(one, "spearman", coefficient)
            assert row[3][0] == ends(one, "places", tenths)
            assert row[4][0] == coefficient(one["agreement_before"].item())
            assert row[5][0] == coefficient(one["agreement_after"].item())
            assert row[6][0] == ends(one, "agreement_change", signed_coefficient)
            counts = [one[k].item() for k in ("n_models", "n_ranked", "n_datasets")]
            assert [int(cell[0]) for cell in row[7:]] == counts
    assert "How far features move was not compared" in whole.text
    assert "Features of a backbone in train mode are not stored" in whole.text

    found = head_bn(study)
    head, body = whole.rows("head-table")
    assert head[2:5] == ["Points, all models", "with BatchNorm", "without"]
    changed = ["ρ of rankings", "Places moved", "Agreement before", "after", "change"]
    assert head[5:] == [*changed, "Pairs", "Datasets"]
    kinds = {"kNN": "knn", "few-shot": "fewshot", "fine-tuning": "finetune"}
    kinds["linear probe"] = "linear"
    for row in body:
        change = row[1][0].replace(" → ", " to ")
        one = found.sel(kind=kinds[row[0][0]], change=change.removesuffix(" †"))
        assert change.endswith("†") == one["transductive"].item()
        for cell, among in zip(row[2:5], found["among"].values, strict=True):
            own = one.sel(among=among)
            text, count = ends(own, "difference", signed), own["n_models"].item()
            number, bracket, rest = text.partition("[")
            assert cell[0] == f"{number} ({count:.0f}){bracket}{rest}"
        own = one.sel(among="all")
        assert row[5][0] == ends(own, "spearman", coefficient)
        assert row[6][0] == ends(own, "places", tenths)
        assert row[7][0] == coefficient(own["agreement_before"].item())
        assert row[8][0] == coefficient(own["agreement_after"].item())
        assert row[9][0] == ends(own, "agreement_change", signed_coefficient)
        assert [int(cell[0]) for cell in row[10:]] == [own["n_pairs"], own["n_datasets"]]
    assert len(body) == 5
    head, pairs = whole.rows("head-pairs-table")
    assert [row[0][0] for row in pairs] == found["before"].values.tolist()
    for number, row in enumerate(pairs):
        own = found.isel(pair=number).sel(among="all")
        assert row[1][0].removesuffix(" †") == own["after"].item()
        assert row[1][0].endswith("†") == own["transductive_by_pair"].item()
        for place, name, show in (
            (5, "spearman", coefficient),
            (6, "places", tenths),
            (9, "agreement_change", signed_coefficient),
        ):
            assert row[place][0] == ends(own, name, show, "_by_pair")


@pytest.fixture(scope="module")
def forms(study):
    """A study in which the linear probe has all of its forms, and some with a BatchNorm."""
    names = {
        "knn-marks": "linear-marks-1view",
        "knn-marks-zscore": "linear-marks-8view",
        "finetune-marks-bn": "linear-marks-bn",
        "ncm": "linear-marks-literal-bn",
        "fewshot": "linear-marks-1view-mlp",
    }
    renamed = [names.get(str(name), str(name)) for name in study["protocol"].values]
    return study.assign_coords(protocol=renamed)


def test_the_table_of_short_cuts_holds_what_they_cost(forms, tmp_path):
    page = Page(report(forms, tmp_path / "r.html").read_text(encoding="utf-8"))
    head, body = page.rows("linear-table")
    assert head[:4] == ["Protocol", "instead of", "Points", "ρ of rankings"]
    pairs = [[cell[0] for cell in row[:2]] for row in body]
    plain = ("linear-marks-1view", "linear-marks-8view", "linear-marks-literal")
    assert pairs == [
        *([name, "linear-marks"] for name in plain),
        ["linear-marks-literal-bn", "linear-marks-bn"],
    ]
    for row in body:
        name, reference = (cell[0] for cell in row[:2])
        one = compare_protocols(forms, reference, [name]).isel(protocol=0)
        assert row[2][0] == ends(one, "difference", signed)
        assert row[3][0] == ends(one, "spearman", coefficient)
        assert row[4][0] == ends(one, "pearson", coefficient)
        assert row[5][0] == ends(one, "places", tenths)
        assert row[6][0] == duration(one["seconds"].item())
        assert row[7][0] == duration(one["reference_seconds"].item())
        assert [cell[0] for cell in row[8:]] == ["9", "3"]
    for told in ("linear-marks: as published", "-1view: off", "-8view: off", "-literal: as the"):
        assert told in page.text


def test_short_cuts_are_shown_where_there_are_some(results, forms, page, whole, tmp_path):
    assert [row[0][0] for row in whole.rows("linear-table")[1]] == ["linear-marks-literal"]
    assert "-literal: as the authors" in whole.text
    assert "-8view: off the store" not in whole.text
    assert "linear-table" not in page.tables  # there are forms, but not the published one
    assert "short cuts" not in page.text
    few = forms.isel(dataset=[0], bn_mode=[0])
    alone = few.sel(protocol=["linear-marks", "linear-marks-literal-bn", "linear-marks-1view-mlp"])
    assert "linear-table" not in make_page(alone, tmp_path).tables
    both = few.sel(protocol=["linear-marks", "linear-marks-1view"])
    assert "linear-table" in make_page(both, tmp_path).tables
    cells = [name for name, one in both.data_vars.items() if "protocol" in one.dims]
    emptied = both.assign(both[cells].where(both["protocol"] == "linear-marks"))
    emptied["transductive"] = both["transductive"]
    assert "linear-table" not in make_page(emptied, tmp_path).tables


def test_how_far_features_move_stands_beside_the_scores(study, tmp_path):
    rng = np.random.default_rng(0)
    small = study.isel(protocol=[0, 3])
    names, modes = small["model"].values, small["bn_mode"].values
    sizes = {"dataset": 3, "model": 9, "bn_mode": 3, "other": 9, "other_mode": 3}
    compared = xr.Dataset(
        {
            name: (tuple(sizes), rng.random(tuple(sizes.values())))
            for name in ("cka", "displacement")
        },
        {"model": names, "other": names, "bn_mode": modes, "other_mode": modes}
        | {name: ("model", small[name].values) for name in ("bn_free", "stage", "family")}
        | {"rows": ("dataset", [20, 7, 20])},
    )
    place = report(small, tmp_path / "r.html", similarity=compared)
    text = place.read_text(encoding="utf-8")
    _, body = Page(text).rows("backbone-table")
    found = bn_displacement(compared)
    headings = [row[0][0] for row in body if len(row) == 1]
    for heading, mode in zip(headings, ("batch", "adapt"), strict=True):
        one = found.sel(bn_mode=mode)
        distance, cka = (
            ends(one, name, coefficient).replace("[", " [")
            for name in ("displacement_mean", "cka_mean")
        )
        marked = {"batch": "batch †", "adapt": "adapt"}[mode]
        assert heading == (
            f"BN mode {marked} instead of evalfeatures move by {distance} of their spread, "
            f"CKA {cka}, 6 models"
        )
    assert "in train mode are not stored" not in text
    assert "Whose features are alike?" in text
    assert "at most 20 test images" in text
    elsewhere = compared.sel(bn_mode=["adapt"], other_mode=["adapt"])
    again = report(small, tmp_path / "s.html", similarity=elsewhere)
    text = again.read_text(encoding="utf-8")
    assert "features not compared" in text
    assert "Whose features are alike?" not in text


def test_a_protocol_with_confidences_and_no_score_does_not_stop_the_report(study, tmp_path):
    holed = study.isel(protocol=[0, 2, 3], dataset=[0, 1], bn_mode=[0]).copy(deep=True)
    holed["score"].loc[{"protocol": "knn-marks-zscore-own"}] = np.nan
    page = make_page(holed, tmp_path)
    labels = [attrs.get("aria-label", "") for _, attrs in page.elements]
    assert any("confidence by knn-marks-zscore-own †" in one for one in labels)


def test_whatever_is_transductive_has_a_dagger_wherever_it_stands(whole, page):
    for one in (whole, page):
        assert len(re.findall(r"knn-marks-zscore-own †", one.text)) > 10
        assert not re.findall(r"knn-marks-zscore-own(?! †)", one.text)
        assert not re.findall(r"(?<=BN mode )batch(?! †)", one.text)
        assert not re.findall(r"batch(?! †) − eval", one.text)
    assert not re.findall(r"fewshot\+normalisation=zscore(?! †)", whole.text)
    assert "Scaled on test †" in whole.text


def test_a_missing_transductive_cell_has_a_dagger(study, tmp_path):
    small = study.isel(protocol=[0, 2], dataset=[0, 1])
    holed = without(small, protocol="knn-marks-zscore-own", bn_mode="batch")
    holed = without(holed, model="resnet-1", dataset="set-1", protocol="knn-marks-zscore-own")
    _, body = make_page(holed, tmp_path).rows("missing-table")
    told = [[cell[0] for cell in row[2:4]] for row in body]
    own = "knn-marks-zscore-own †"
    assert told == [["batch †", own], ["eval, adapt", own]]


def test_cells_recorded_without_a_score_have_failed_and_are_not_missing(study, tmp_path):
    small = study.isel(protocol=[0, 2, 12], dataset=[0, 1]).copy(deep=True)
    for model, dataset in (("resnet-0", "set-1"), ("vit-7", "set-0")):  # one is in every BN mode
        small["score"].loc[{"model": model, "dataset": dataset, "protocol": "finetune-marks"}] = (
            np.nan
        )
    page = make_page(small, tmp_path)
    assert "missing-table" not in page.tables
    assert "2 cells were recorded without a score" in page.text
    _, body = page.rows("failed-table")
    assert [[cell[0] for cell in row[:4]] for row in body] == [
        ["resnet-0", "set-1", "eval", "finetune-marks"],
        ["vit-7", "set-0", "eval", "finetune-marks"],
    ]
    seconds = small["seconds"].sel(
        model="vit-7", dataset="set-0", bn_mode="eval", protocol="finetune-marks"
    )
    assert float(body[1][4][1]) == seconds.item()


def test_fits_that_did_not_converge_are_counted(study, tmp_path):
    small = study.isel(protocol=[3, 0, 4], dataset=[0, 1])
    converged = xr.where(small["score"].notnull(), 1.0, np.nan)
    converged.loc[{"protocol": "knn-marks"}] = np.nan  # does not iterate
    converged.loc[{"protocol": "logreg", "model": ["resnet-0", "vit-8"], "dataset": "set-1"}] = 0.0
    _, body = make_page(small.assign(converged=converged), tmp_path).rows("unconverged-table")
    # Once for each BN mode, of models without BatchNorm once: 2 datasets, 6 and 3 models.
    assert [[cell[0] for cell in row] for row in body] == [["logreg", "4", "42"]]


def test_every_score_of_another_bn_mode_has_its_table_too(study, whole):
    order = rank_models(study)["model"].values
    for mode in ("batch", "adapt"):
        for protocol in ("knn-marks", "logreg"):
            _, body = whole.rows(f"heat-{protocol}-{mode}")
            cells = study["score"].sel(protocol=protocol, bn_mode=mode, model=order).values
            found = [[cell[0] for cell in row[1:]] for row in body]
            assert found == [[percent(one) for one in row] for row in cells]
    assert "heat-finetune-marks" in whole.tables
    assert "heat-finetune-marks-batch" not in whole.tables  # it stands under eval alone
    assert "heat-logme" not in whole.tables  # it is no share


def test_a_cell_carries_its_interval(study, whole):
    order = rank_models(study)["model"].values
    tips = [attrs["data-tip"] for tag, attrs in whole.elements if "data-tip" in attrs]
    first = study.sel(protocol="logreg", bn_mode="eval", model=order[0]).isel(dataset=0)
    low, high = (percent(first[end].item()) for end in ("low", "high"))
    assert f"[{low}, {high}]" in tips
    pair = correlate_protocols(study, by_dataset=False)
    pair = pair.sel(protocol="logreg", other="ncm")
    low, high = (coefficient(pair[f"pearson_{end}"].item()) for end in ("low", "high"))
    assert f"[{low}, {high}] n = 9" in tips


def test_provenance_says_what_results_say_of_models_protocols_and_features(study, tmp_path):
    small = study.isel(protocol=[0, 3], dataset=[0, 1])
    digests = np.full((9, 2, 3), "", dtype=object)
    digests[0, 1] = ["ab" * 32, "cd" * 32, ""]
    place = ("model", "dataset", "bn_mode"), digests.astype(str)
    page = make_page(small.assign(features_digest=place), tmp_path)
    assert [[cell[0] for cell in row] for row in page.rows("digests-table")[1]] == [
        ["resnet-0", "set-1", "ab" * 6, "cd" * 6, "–"]
    ]
    head, body = page.rows("models-table")
    assert head == ["Model", "Backbone", "Family", "Stage", "Bn free"]
    assert [cell[0] for cell in body[8]] == ["vit-8", "vit", "contrastive", "late", "yes"]
    head, body = page.rows("protocols-table")
    assert head == ["Protocol", "Kind", "Scale", "Normalisation", "Backbone bn"]
    assert [cell[0] for cell in body[1]] == ["logreg", "linear", "share", "none", "–"]
    head, body = page.rows("datasets-table")
    assert head[-3:] == ["Categories", "Test images", "Models that saw it in pretraining"]
    assert [cell[0] for cell in body[0]][-3:] == ["10", "200", "0"]
    assert "digests-table" not in make_page(small, tmp_path).tables


def test_of_many_protocols_those_are_drawn_that_go_best_with_the_reference(
    make_study, tmp_path, monkeypatch
):
    monkeypatch.setattr("featstore.reporting.figures.MOST", 3)
    study = make_study(3).isel(protocol=[0, 1, 3, 4, 5, 6], bn_mode=[0])
    page = make_page(study, tmp_path)
    drawn = {attrs["data-name"] for tag, attrs in page.elements if "data-name" in attrs}
    r = correlate_protocols(study, by_dataset=False)["pearson"]
    order = r.sel(other="logreg").drop_sel(protocol="logreg").to_series().sort_values()
    best = {f"pair-{name.replace('+', '-').replace('=', '-')}" for name in order.index[-3:]}
    assert {name for name in drawn if name.startswith("pair-")} == best
    assert "Of 5 protocols, the 3 are drawn that go best with it" in page.text


def test_cells_that_no_bn_mode_has_are_not_missing(study, whole):
    assert "Nothing: every cell is there" in whole.text
    assert not re.search(r"\bnan\b", whole.text)


def test_a_long_study_keeps_its_ids_and_links_apart(study, tmp_path):
    text = report(study, tmp_path / "r.html").read_text(encoding="utf-8")
    ids = [attrs["id"] for _, attrs in Page(text).elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert addresses(text) == {NAMESPACE}


def test_results_without_a_date_make_a_report(study, tmp_path):
    assert "created" not in study.attrs
    small = study.isel(protocol=[0, 3], dataset=[0, 1], bn_mode=[0])
    assert "knn-marks" in make_page(small, tmp_path).text


@pytest.mark.parametrize("count", [1, 3])
def test_few_models_give_a_report_that_says_why_it_has_no_correlation(results, tmp_path, count):
    page = make_page(results.isel(model=slice(0, count)), tmp_path)
    reason = f"{count} model{'s are' if count > 1 else ' is'} independent, and it takes 4"
    assert reason in page.text
    assert not re.search(r"\bnan\b", page.text)


def test_one_model_dataset_protocol_and_mode_make_a_report(results, tmp_path):
    page = make_page(results.isel(model=[0], dataset=[0], protocol=[0], bn_mode=[0]), tmp_path)
    assert "There is one protocol" in page.text
    assert "is the only dataset" in page.text
    assert "Only BN mode eval was measured" in page.text
    assert "Nothing: every cell is there" in page.text
    assert "supervised-cnn ranks first" in page.text
    assert "1 cell." in page.text


def test_without_an_in_domain_dataset_the_report_says_so(results, tmp_path):
    elsewhere = results.isel(dataset=slice(1, 4), protocol=[0, 7])
    assert "No dataset is marked as in-domain" in make_page(elsewhere, tmp_path).text


def test_a_protocol_without_cells_does_not_stop_the_report(results, tmp_path):
    holed = without(results.isel(protocol=[0, 1, 7], bn_mode=[0, 2]), protocol="logreg")
    page = make_page(holed, tmp_path)
    _, body = page.rows("missing-table")
    assert [cell[0] for cell in body[0]][:4] == ["every model", "every dataset", "eval", "logreg"]
    assert not re.search(r"\bnan\b", page.text)
    assert "Each protocol against knn-marks" in page.text


def test_only_random_models_rank_nobody_first(results, tmp_path):
    random = results.isel(model=results["stage"].values == "random", protocol=[0, 7])
    assert "none is ranked first" in make_page(random, tmp_path).text


def test_scores_that_are_all_equal_make_a_report(results, tmp_path):
    flat = results.isel(protocol=[0, 7]).copy(deep=True)
    flat["score"][:] = 0.5
    assert "no r: all scores" in make_page(flat, tmp_path).text


def test_without_eval_the_first_bn_mode_is_used(results, tmp_path):
    page = make_page(results.isel(bn_mode=[2], protocol=[0, 7]), tmp_path)
    assert "in BN mode adapt" in page.text


def test_names_are_text_and_never_markup_or_formulas(results, tmp_path):
    name = "folder:/a b/<script>alert('x')</script>&$x^2$\"q\""
    names = results["model"].values.astype(object)
    names[0] = name
    odd = results.isel(protocol=[0, 7], dataset=[0, 1]).assign_coords(model=names.astype(str))
    text = report(odd, tmp_path / "odd.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    page = Page(text)
    assert page.tables["ranking-table"]
    assert page.text.count(name) >= 4  # the tooltip of a point, the heat map, and tables


def test_a_failed_write_leaves_the_old_report_and_nothing_else(results, tmp_path, monkeypatch):
    place = tmp_path / "report.html"
    place.write_text("the old one")
    small = results.isel(protocol=[0], dataset=[0], bn_mode=[0])

    def disk_full(self, text, encoding):
        self.write_bytes(text.encode()[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", disk_full)
    with pytest.raises(OSError, match="No space left"):
        report(small, place)
    assert place.read_bytes() == b"the old one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_folders_are_made_and_an_unknown_reference_is_refused(results, tmp_path):
    small = results.isel(protocol=[0, 7], dataset=[0, 1], bn_mode=[0])
    made = report(small, tmp_path / "new" / "folder" / "r.html", reference="knn-marks")
    assert "Each protocol against knn-marks" in Page(made.read_text(encoding="utf-8")).text
    with pytest.raises(ValueError, match="reference must be one of knn-marks, logreg, got 'x'"):
        report(small, tmp_path / "r.html", reference="x")


def test_results_without_a_cell_are_refused(results, tmp_path):
    with pytest.raises(ValueError, match="results hold no cell"):
        report(results.where(False), tmp_path / "r.html")


def test_names_are_broken_where_a_reader_would_break_them():
    name = "fewshot-5shot-ericsson+normalisation=zscore"
    assert breakable(name) == "fewshot-<wbr>5shot-<wbr>ericsson<wbr>+normalisation=<wbr>zscore"
    assert breakable("<b>&domainnet_real") == "&lt;b&gt;&amp;domainnet_<wbr>real"
    assert on_lines(name, 25) == "fewshot-5shot-ericsson\n+normalisation=zscore"
    assert on_lines(name, 80) == name
    assert on_lines("x" * 99, 25) == "x" * 99


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (percent, 0.8421, "84.2"),
        (percent, np.nan, "–"),
        (signed, -0.0123, "−1.2"),
        (signed, -0.0001, "+0.0"),
        (coefficient, -0.004, "0.00"),
        (coefficient, -0.5, "−0.50"),
        (signed_coefficient, -0.123, "−0.12"),
        (signed_coefficient, 0.001, "+0.00"),
        (tenths, 1.25, "1.2"),
        (tenths, np.nan, "–"),
        (count, 10000.0, "10,000"),
        (count, np.nan, "–"),
        (duration, 0.034, "0.03 s"),
        (duration, 0.0034, "3.4 ms"),
        (duration, 4.0, "4.0 s"),
        (duration, 42.4, "42 s"),
        (duration, 90, "1.5 min"),
        (duration, 5400, "1.5 h"),
        (duration, np.nan, "–"),
    ],
)
def test_numbers_are_printed_as_people_write_them(show, value, text):
    assert show(value) == text


@pytest.mark.parametrize("dtype", [object, np.dtypes.StringDType()], ids=["object", "StringDType"])
def test_every_kind_of_string_array_gives_the_same_report(results, tmp_path, dtype):
    few = results.isel(protocol=[0, 2, 7], dataset=slice(0, 3))
    expected = report(few, tmp_path / "fixed.html")
    texts = [name for name in few.coords if few[name].dtype.kind == "U"]
    other = few.assign_coords(
        {name: (few[name].dims, few[name].values.astype(dtype)) for name in texts}
    )
    assert {other[name].dtype.kind for name in ("stage", "shift")} == {np.dtype(dtype).kind}
    found = report(other, tmp_path / "other.html")
    assert found.read_bytes() == expected.read_bytes()
