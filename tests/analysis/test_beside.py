"""Own results beside published ones: made-up records against numbers of the printed tables."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from featstore.analysis.beside import compare_published
from featstore.analysis.published import published
from featstore.errors import FeatStoreError, UnknownNameError
from featstore.results import open_results, refresh

from .made_records import put

# Printed in table 1 of arXiv:2011.13377v2: CIFAR-10, linear, in %.
PRINTED = {
    "swav-resnet50": 93.99,
    "byol-deepmind-resnet50": 93.26,
    "supervised-resnet50": 91.42,
    "insdis-resnet50": 80.28,
    "moco-v1-resnet50": 80.16,
}
OURS = {  # in %, with an interval of one point to both sides
    "swav-resnet50": 94.5,
    "byol-deepmind-resnet50": 92.0,
    "supervised-resnet50": 91.42,
    "insdis-resnet50": 79.0,
    "moco-v1-resnet50": 80.9,
}


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "results"
    for model, value in OURS.items():
        put(root, value / 100, model=model, dataset="cifar10@ericsson",
            protocol="logreg-ericsson")  # fmt: skip
    return root


def test_each_cell_has_ours_theirs_and_their_difference(root):
    found = compare_published(open_results(root), "ericsson2021")
    assert dict(found.sizes) == {"model": 5, "dataset": 1, "protocol": 1}
    for model, ours in OURS.items():
        one = found.sel(model=model, dataset="cifar10@ericsson", protocol="logreg-ericsson")
        assert one["ours"].item() == pytest.approx(ours / 100)
        assert one["theirs"].item() == pytest.approx(PRINTED[model] / 100)
        assert one["difference"].item() == pytest.approx((ours - PRINTED[model]) / 100)
        assert one["inside"] == (abs(ours - PRINTED[model]) <= 1)
        ends = [one["ours_low"].item(), one["ours_high"].item()]
        assert ends == pytest.approx([ours / 100 - 0.01, ours / 100 + 0.01])
        assert np.isnan(one["theirs_low"].item())
    assert str(found["metric"].item()) == "top1"


def test_what_cells_come_to_over_models(root):
    found = compare_published(open_results(root), "ericsson2021").squeeze(["dataset", "protocol"])
    names = list(OURS)
    ours, theirs = ([side[name] for name in names] for side in (OURS, PRINTED))
    apart = np.abs(np.subtract(ours, theirs))
    assert found["n"] == 5
    assert found["n_with_interval"] == 5
    assert found["n_inside"] == np.count_nonzero(apart <= 1) == 3
    assert found["mean_absolute_difference"].item() == pytest.approx(apart.mean() / 100)
    assert found["spearman"].item() == pytest.approx(spearmanr(ours, theirs)[0])
    assert found["spearman_low"] < found["spearman"] < found["spearman_high"]


def test_fewer_than_four_models_have_no_coefficient(tmp_path):
    for model in list(OURS)[:3]:
        put(tmp_path, 0.9, model=model, dataset="cifar10@ericsson", protocol="logreg-ericsson")
    found = compare_published(open_results(tmp_path), "ericsson2021")
    assert found["n"].item() == 3
    for end in ("", "_low", "_high"):
        assert np.isnan(found[f"spearman{end}"].item())


def test_intervals_printed_beside_numbers_come_along(tmp_path):
    put(tmp_path, 0.5, model="insdis-resnet50", dataset="fgvc_aircraft@ericsson-fewshot",
        protocol="fewshot-20shot-ericsson", headline="episodes")  # fmt: skip
    one = compare_published(open_results(tmp_path), "ericsson2021").squeeze()
    ends = [one[f"theirs{end}"].item() for end in ("_low", "", "_high")]
    assert ends == pytest.approx([0.4867 - 0.0093, 0.4867, 0.4867 + 0.0093])
    assert "600 other episodes" in str(one["differences"].item())


def test_every_protocol_that_answers_to_theirs_is_compared_with_it(root):
    for name in ("logreg-ericsson-literal", "logreg-ericsson-literal-published", "logreg"):
        put(root, 0.93, model="swav-resnet50", dataset="cifar10@ericsson", protocol=name)
    found = compare_published(open_results(root), "ericsson2021")
    assert {*found["protocol"].values} == {
        "logreg-ericsson", "logreg-ericsson-literal", "logreg-ericsson-literal-published",
    }  # fmt: skip
    theirs = found["theirs"].sel(model="swav-resnet50").values
    np.testing.assert_allclose(theirs, 0.9399)
    told = found["differences"].squeeze("dataset")
    assert "100 iterations" in told.sel(protocol="logreg-ericsson").item()
    assert told.sel(protocol="logreg-ericsson-literal").item().startswith("as their code runs")


def test_another_transform_and_what_is_known_of_a_dataset_are_said(tmp_path):
    for dataset in ("caltech101", "caltech101@ericsson"):
        put(tmp_path, 0.9, model="swav-resnet50", dataset=dataset, protocol="logreg-ericsson",
            headline="mean_per_class")  # fmt: skip
    found = compare_published(open_results(tmp_path), "ericsson2021").squeeze("protocol")
    bare, same = (
        found["differences"].sel(dataset=name).item()
        for name in ("caltech101", "caltech101@ericsson")
    )
    assert bare == f"{same}; images through @own, theirs through @ericsson"
    assert "drawn with replacement" in same


def test_metrics_that_differ_are_not_compared_and_this_is_said(root):
    put(root, 0.9, model="swav-resnet50", dataset="flowers102@ericsson",
        protocol="logreg-ericsson", headline="top1")  # fmt: skip
    found = compare_published(open_results(root), "ericsson2021")
    assert "flowers102@ericsson" not in found["dataset"].values
    told = found.attrs["left_out"]
    assert told[0] == (
        "logreg-ericsson on flowers102@ericsson: published is mean_per_class, which ours lacks "
        "(1 of 5 models)"
    )
    assert "detection-frozen: featstore runs no detection" in told


# The format's specification does not have it yet, and xarray warns when it is absent.
@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part:UserWarning")
def test_results_as_zarr_has_them_are_compared_as_well(root, tmp_path):
    with xr.open_zarr(refresh(root, tmp_path / "results.zarr")) as results:
        found = compare_published(results)
    xr.testing.assert_allclose(found, compare_published(open_results(root)))


def test_model_cards_are_compared_by_the_protocol_that_is_the_same(tmp_path):
    for model, value in {"dino-resnet50": 0.676, "dino-vitb16": 0.76, "ibot-vitb16": 0.7}.items():
        put(tmp_path, value, model=model, dataset="imagenet", protocol="knn-dino-k20")
        put(tmp_path, value, model=model, dataset="imagenet", protocol="linear-marks")
    put(tmp_path, 0.78, model="milan-vitb16", dataset="imagenet", protocol="knn-dino-k20")
    found = compare_published(open_results(tmp_path), "model-cards")
    assert [*found["protocol"].values] == ["knn-dino-k20"]
    theirs = found["theirs"].squeeze().to_series()
    expected = {"dino-resnet50": 0.675, "dino-vitb16": 0.761, "ibot-vitb16": 0.771}
    assert theirs.to_dict() == pytest.approx(expected)
    assert [*found["inside"].values.ravel()] == [1, 1, 0]
    assert "iBOT states no k" in found["differences"].item()
    assert any(one.startswith("linear-authors: ") for one in found.attrs["left_out"])
    assert "nearest is linear-marks" in " ".join(found.attrs["left_out"])


def test_a_cell_without_an_interval_is_neither_in_nor_out(tmp_path):
    put(tmp_path, 0.9, model="swav-resnet50", dataset="cifar10@ericsson",
        protocol="logreg-ericsson", half=np.nan)  # fmt: skip
    found = compare_published(open_results(tmp_path), "ericsson2021")
    assert np.isnan(found["inside"].item())
    assert found["n_with_interval"].item() == found["n_inside"].item() == 0


def test_nothing_shared_is_one_line_with_what_is_there_and_what_it_takes(tmp_path):
    for number in range(5):
        put(tmp_path, 0.9, model=f"mine-{number}", dataset="digits", protocol="logreg")
    with pytest.raises(FeatStoreError) as caught:
        compare_published(open_results(tmp_path), "ericsson2021")
    message = str(caught.value)
    assert "\n" not in message
    assert "models mine-0, mine-1, mine-2, ... (5); datasets digits; protocols logreg" in message
    assert "featstore extract -m ericsson2021 -d ericsson2021" in message


def test_only_metrics_that_differ_are_said_to_be_the_reason(tmp_path):
    put(tmp_path, 0.9, model="swav-resnet50", dataset="voc2007@ericsson",
        protocol="logreg-ericsson")  # fmt: skip
    with pytest.raises(FeatStoreError, match="published is map11, which ours lacks"):
        compare_published(open_results(tmp_path), "ericsson2021")


def test_names_that_do_not_exist_are_refused(root):
    results = open_results(root)
    with pytest.raises(UnknownNameError, match="unknown published tables 'marks2024'"):
        compare_published(results, "marks2024")
    with pytest.raises(ValueError, match="bn_mode must be one of eval, got 'adapt'"):
        compare_published(results, bn_mode="adapt")
    with pytest.raises(ValueError, match="seed"):
        compare_published(open_results(root, seeds=True))
    with pytest.raises(ValueError, match="these are no results"):
        compare_published(xr.Dataset({"a": 1}))


def test_published_numbers_beside_themselves_agree_in_full():
    tables = published("ericsson2021")
    found = compare_published(tables, "ericsson2021")
    assert abs(found["difference"]).max() == 0
    assert found["ours"].notnull().sum() == 14 * (11 + 11) + 546
    rho = found["spearman"].where(found["n"] > 0)
    np.testing.assert_allclose(rho.values[np.isfinite(rho.values)], 1)
    inside = found["inside"].where(found["theirs_low"].notnull())
    assert inside.sum() == 546
