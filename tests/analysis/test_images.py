"""Correlations as far as test images decide them, against brute force and against planted ones."""

import numpy as np
import pytest
from scipy import stats

from featstore.analysis import images
from featstore.analysis.images import correlate_images
from featstore.errors import CorruptStoreError, FeatStoreError, StoreMismatchError
from featstore.results import Cell, record

SCIPY = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}


def put(root, model, protocol, right, *, dataset="d", labels=None, metric="top1", stage="late"):
    """A record that says which test images were told right; None says it of several labels."""
    n = 40 if right is None else len(right)
    labels = np.arange(n) % 4 if labels is None else labels
    rows = {"index": np.arange(n), "label": np.zeros((n, 3), np.int8), "score": np.zeros((n, 3))}
    if right is not None:
        rows = {"index": np.arange(n), "label": labels, "rank": np.where(right, 0, 2)}
    value = {"value": 0.5, "low": 0.4, "high": 0.6}
    info = {
        "backbone": "resnet", "family": "contrastive", "stage": stage, "lineage": model,
        "pretraining": [], "bn_free": False,
    }  # fmt: skip
    facts = {
        "metrics": {metric: value}, "n_train": 40, "n_test": n, "n_skipped": 0, "n_categories": 4,
        "seconds": 0.5, "certificate": {}, "settings": {"kind": "linear", "scale": "share"},
        "headline": metric, "transductive": False, "splits": {}, "model_info": info,
        "dataset_info": {"shift": "", "metric": metric, "source": "x"},
        "versions": {"featstore": "0.1.0"},
    }  # fmt: skip
    record(root, Cell(model, dataset, "eval", protocol, 0, "a" * 64), facts, rows)


def fill(root, correct, **how):
    """Records of (model, protocol, image); protocols are a, b, c, ..., and NaN is no cell."""
    for m, of_model in enumerate(correct):
        for p, right in enumerate(of_model):
            if not np.isnan(right).any():
                put(root, f"m{m:02}", "abcdef"[p], right.astype(bool), **how)


def made_up(rng, n_models, n_images, *, agreement, shared, spread=0.15):
    """Two protocols (model, protocol, image) whose true accuracies go together by `agreement`.

    `shared` of each model's luck is the image's, the same under both protocols; no other model
    shares it.
    """
    true = rng.multivariate_normal([0, 0], [[1, agreement], [agreement, 1]], n_models)
    true = 0.6 + spread * (true - true.mean(0)) @ whitener(true, agreement)
    luck = rng.normal(size=(n_models, 3, n_images))
    luck = np.sqrt(shared) * luck[:, :1] + np.sqrt(1 - shared) * luck[:, 1:]
    return (stats.norm.cdf(luck) < true[:, :, None]).astype(float), true


def whitener(values, agreement):
    """What makes the sample's covariance exactly that of unit variables which agree so."""
    spread = np.linalg.cholesky(np.cov(values.T))
    aim = np.linalg.cholesky([[1, agreement], [agreement, 1]])
    return np.linalg.inv(spread).T @ aim.T


@pytest.mark.parametrize("statistic", SCIPY)
def test_coefficients_of_whole_test_sets_are_scipys_where_both_have_a_cell(tmp_path, statistic):
    rng = np.random.default_rng(0)
    correct = (rng.random((7, 3, 50)) < rng.uniform(0.2, 0.9, (7, 3, 1))).astype(float)
    correct[0, 1] = correct[5, 2] = correct[6, 2] = np.nan
    fill(tmp_path, correct)
    found = correlate_images(tmp_path, statistics=[statistic], resamples=9, splits=2)
    assert found[statistic].dims == ("dataset", "protocol", "other")
    assert found["n"].sel(dataset="d").values.tolist() == [[7, 6, 5], [6, 6, 4], [5, 4, 5]]
    assert found["n_cells"].values.tolist() == [18]
    assert found["n_images"].values.tolist() == [50]
    scores = correct.mean(axis=2)
    for i in range(3):
        for j in range(3):
            both = np.isfinite(scores[:, i]) & np.isfinite(scores[:, j])
            expected = SCIPY[statistic](scores[both, i], scores[both, j]).statistic
            assert found[statistic][0, i, j] == pytest.approx(expected, abs=1e-9)


def means(correct, weights, labels):
    """Accuracy of each row of weights, a mean over classes if there are labels; one at a time."""
    out = []
    for count in weights:
        classes = [np.ones(len(count), bool)] if labels is None else [labels == c for c in range(4)]
        shares = [
            (correct[..., of] * count[of]).sum(-1) / count[of].sum()
            for of in classes
            if count[of].sum()
        ]
        out.append(np.mean(shares, axis=0))
    return np.array(out)


@pytest.mark.parametrize("metric", ["top1", "mean_per_class"])
def test_split_coefficients_are_means_over_halves_of_the_images(tmp_path, metric, monkeypatch):
    """Brute force: each half written down, its accuracies taken, SciPy's r of one on the other."""
    rng = np.random.default_rng(1)
    labels = rng.choice(4, 41, p=[0.5, 0.2, 0.2, 0.1])
    correct = (rng.random((6, 2, 41)) < rng.uniform(0.2, 0.9, (6, 2, 1))).astype(float)
    fill(tmp_path, correct, labels=labels, metric=metric)
    kept = []
    halves = images._halves
    monkeypatch.setattr(images, "_halves", lambda *a: kept.append(halves(*a)) or kept[-1])
    found = correlate_images(tmp_path, resamples=9, splits=8)
    (half,) = kept
    assert half.shape == (8, 41)
    assert np.all(np.abs(half.sum(1) - 20.5) < 1)
    assert len(np.unique(half, axis=0)) == 8
    if metric == "mean_per_class":
        for c in range(4):
            assert np.all(np.abs(half[:, labels == c].sum(1) - np.sum(labels == c) / 2) <= 0.5)
    strata = labels if metric == "mean_per_class" else None
    one, other = means(correct, half, strata), means(correct, ~half, strata)
    for i in range(2):
        for j in range(2):
            both_ways = [
                stats.pearsonr(x[:, i], y[:, j]).statistic
                for pair in zip(one, other, strict=True)
                for x, y in (pair, pair[::-1])
            ]
            assert found["pearson_split"][0, i, j] == pytest.approx(np.mean(both_ways), abs=1e-9)
    split = found["pearson_split"][0].values
    expected = split[0, 1] / np.sqrt(split[0, 0] * split[1, 1])
    assert found["pearson_disattenuated"][0, 0, 1] == pytest.approx(expected)
    np.testing.assert_allclose(np.diag(found["pearson_disattenuated"][0]), 1)
    whole = means(correct, np.ones((1, 41)), strata)[0]
    assert found["pearson"][0, 0, 1] == pytest.approx(stats.pearsonr(*whole.T).statistic)


def test_luck_shared_by_images_inflates_the_agreement_and_halves_are_free_of_it(tmp_path):
    """Accuracies that do not go together at all seem to, on the same test images."""
    rng = np.random.default_rng(2)
    found = {"pearson": [], "pearson_split": []}
    for trial in range(8):
        root = tmp_path / str(trial)
        correct, true = made_up(rng, 24, 60, agreement=0.0, shared=0.9, spread=0.05)
        assert stats.pearsonr(*true.T).statistic == pytest.approx(0, abs=1e-9)
        fill(root, correct)
        one = correlate_images(root, statistics=["pearson"], resamples=9, splits=40)
        for name, values in found.items():
            values.append(float(one[name].sel(dataset="d", protocol="a", other="b")))
    assert np.mean(found["pearson"]) > 0.35
    assert np.mean(found["pearson_split"]) == pytest.approx(0, abs=0.12)


def test_the_true_correlation_is_recovered_once_noise_is_accounted_for(tmp_path):
    rng = np.random.default_rng(3)
    found = {"pearson_split": [], "pearson_disattenuated": []}
    for trial in range(8):
        root = tmp_path / str(trial)
        correct, true = made_up(rng, 26, 400, agreement=0.8, shared=0.5, spread=0.08)
        assert stats.pearsonr(*true.T).statistic == pytest.approx(0.8)
        fill(root, correct)
        one = correlate_images(root, statistics=["pearson"], resamples=9, splits=40)
        for name, values in found.items():
            values.append(float(one[name].sel(dataset="d", protocol="a", other="b")))
    assert np.mean(found["pearson_split"]) < 0.75  # attenuated by the noise of 200 images
    assert np.mean(found["pearson_disattenuated"]) == pytest.approx(0.8, abs=0.06)


def test_intervals_are_as_wide_as_other_test_images_move_the_coefficient(tmp_path):
    """The spread over test sets drawn anew from the same models, which only a simulation has."""
    rng = np.random.default_rng(4)
    correct, true = made_up(rng, 14, 400, agreement=0.7, shared=0.3)
    fill(tmp_path, correct)
    found = correlate_images(tmp_path, statistics=["pearson"], resamples=500, splits=2)
    one = found.sel(dataset="d", protocol="a", other="b")
    low, r, high = (float(one[f"pearson{end}"]) for end in ("_low", "", "_high"))
    assert low < r < high
    again = []
    for _ in range(300):
        luck = rng.normal(size=(14, 3, 400))
        luck = np.sqrt(0.3) * luck[:, :1] + np.sqrt(0.7) * luck[:, 1:]
        share = (stats.norm.cdf(luck) < true[:, :, None]).mean(axis=2)
        again.append(stats.pearsonr(*share.T).statistic)
    assert high - low == pytest.approx(np.ptp(np.quantile(again, [0.025, 0.975])), rel=0.35)
    own = found.sel(dataset="d", protocol="a", other="a")
    assert [float(own[f"pearson{end}"]) for end in ("_low", "", "_high")] == pytest.approx(
        [1, 1, 1]
    )


@pytest.mark.parametrize(("metric", "moves"), [("top1", True), ("mean_per_class", False)])
def test_images_are_drawn_within_the_classes_that_a_score_averages(tmp_path, metric, moves):
    """Where each model has a class all right or all wrong, only other shares of classes move r."""
    rng = np.random.default_rng(9)
    labels = np.repeat(np.arange(4), [4, 6, 10, 20])
    of_class = np.array([rng.permutation([1, 1, 0, 0]) for _ in range(12)]).reshape(6, 2, 4)
    of_class[0] = 1
    fill(tmp_path, of_class[:, :, labels].astype(float), labels=labels, metric=metric)
    found = correlate_images(tmp_path, resamples=99, splits=2).sel(protocol="a", other="b")
    assert bool(found["pearson_low"] < found["pearson_high"]) is moves


def test_blocks_change_nothing(tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    fill(tmp_path, (rng.random((6, 2, 50)) < 0.6).astype(float))
    whole = correlate_images(tmp_path, resamples=70, splits=9)
    monkeypatch.setattr(images, "BLOCK", 7)
    assert correlate_images(tmp_path, resamples=70, splits=9).identical(whole)
    other = correlate_images(tmp_path, resamples=70, splits=9, seed_of_draws=1)
    assert not np.allclose(other["pearson_low"], whole["pearson_low"])


def test_datasets_without_single_labels_and_models_that_are_none_of_their_own_stay_out(tmp_path):
    rng = np.random.default_rng(6)
    correct = (rng.random((5, 2, 40)) < 0.6).astype(float)
    fill(tmp_path, correct, dataset="cars")
    fill(tmp_path, correct[:3], dataset="dogs")
    put(tmp_path, "m00", "a", None, dataset="voc", metric="map11")
    put(tmp_path, "young", "a", correct[0, 0].astype(bool), dataset="cars", stage="early")
    found = correlate_images(tmp_path, resamples=9, splits=3)
    assert found["dataset"].values.tolist() == ["cars", "dogs"]
    assert found["n"].values[:, 0, 1].tolist() == [5, 3]
    assert found["pearson"][0].notnull().all()
    for name in ("pearson", "pearson_low", "spearman_split", "spearman_disattenuated"):
        assert found[name].sel(dataset="dogs").isnull().all()  # three models
    everyone = correlate_images(tmp_path, datasets=["cars"], models="all", resamples=9, splits=3)
    assert everyone["n"].values[0].tolist() == [[6, 5], [5, 5]]
    with pytest.raises(FeatStoreError, match="keeps no single category"):
        correlate_images(tmp_path, datasets=["voc"])


def test_protocols_of_some_datasets_only_leave_gaps(tmp_path):
    rng = np.random.default_rng(7)
    correct = (rng.random((5, 3, 40)) < 0.6).astype(float)
    fill(tmp_path, correct, dataset="cars")
    fill(tmp_path, correct[:, :2], dataset="dogs")
    found = correlate_images(tmp_path, resamples=9, splits=3)
    assert found["n"].sel(dataset="dogs", protocol="a").values.tolist() == [5, 5, 0]
    assert found["n"].dtype.kind == "i"
    assert np.isnan(found["pearson"].sel(dataset="dogs", protocol="a", other="c"))
    assert found["n_cells"].values.tolist() == [15, 10]


def test_a_protocol_without_spread_over_models_has_no_number(tmp_path):
    rng = np.random.default_rng(8)
    correct = (rng.random((5, 2, 40)) < 0.6).astype(float)
    correct[:, 1] = correct[0, 1]
    fill(tmp_path, correct)
    found = correlate_images(tmp_path, resamples=9, splits=3).sel(dataset="d", other="b")
    for name in ("pearson", "pearson_low", "pearson_split", "pearson_disattenuated"):
        assert found[name].isnull().all()


def test_a_damaged_record_is_named_and_left_out_only_if_told(tmp_path, caplog):
    correct, _ = made_up(np.random.default_rng(0), 6, 60, agreement=0.5, shared=0.5)
    fill(tmp_path, correct)
    (kept,) = tmp_path.glob("m02/d/eval/a/*.npz")
    kept.write_bytes(b"")
    (record_,) = tmp_path.glob("m03/d/eval/b/*.json")
    whole = record_.read_text()
    record_.write_text(whole[:40])
    for spoilt in (record_, kept):
        with pytest.raises(CorruptStoreError, match=spoilt.name):
            correlate_images(tmp_path, resamples=9, splits=3)
        found = correlate_images(tmp_path, resamples=9, splits=3, skip_errors=True)
        assert found["n"].sel(dataset="d", protocol="a", other="b") == (
            4 if spoilt == record_ else 5
        )
        assert str(spoilt) in caplog.text
        record_.write_text(whole)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(FeatStoreError, match="no dataset in .* has cells of independent models"):
        correlate_images(tmp_path)
    put(tmp_path, "young", "a", np.ones(40, bool), stage="early")
    with pytest.raises(FeatStoreError, match="no dataset in"):
        correlate_images(tmp_path)
    for wrong, what in [
        ({"statistics": ["r"]}, "statistics must be of pearson, spearman, kendall, got 'r'"),
        ({"resamples": 0}, "resamples and splits must be at least 1, got 0 and 50"),
        ({"splits": 0}, "got 1000 and 0"),
        ({"models": "some"}, "models must be one of"),
        ({"bn_mode": "x"}, "bn_mode must be one of"),
    ]:
        with pytest.raises(ValueError, match=what):
            correlate_images(tmp_path, **wrong)
    put(tmp_path, "m", "a", np.ones(40, bool), dataset="voc", metric="map")
    with pytest.raises(FeatStoreError, match="scores on voc are map, and only top1"):
        correlate_images(tmp_path, datasets=["voc"])
    put(tmp_path, "other", "a", np.ones(30, bool))
    with pytest.raises(StoreMismatchError, match="not of the same test images"):
        correlate_images(tmp_path)
