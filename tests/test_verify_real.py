"""The comparison with published numbers, its logic tried on stand-ins that lie in the package."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sklearn.neighbors import KNeighborsClassifier

import featstore

PATH = Path(__file__).parents[1] / "pipelines" / "verify_real.py"


@pytest.fixture(scope="module")
def verify():
    spec = importlib.util.spec_from_file_location("verify_real", PATH)
    module = sys.modules["verify_real"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["verify_real"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """kNN accuracy of a tiny model on digits, in %, by scikit-learn off the stored features."""
    store = tmp_path_factory.mktemp("reference") / "s.zarr"
    featstore.extract(["tiny-vit-random"], ["textures"], store=store)
    key = featstore.FeatureKey("tiny-vit-random", "textures", featstore.BNMode.EVAL)
    features = featstore.Store(store).open(key)
    rows = {name: features[name].embedding[...].astype(float) for name in ("train", "test")}
    knn = KNeighborsClassifier(20, weights="distance", algorithm="brute")
    knn.fit(rows["train"], features["train"].label)
    return 100 * knn.score(rows["test"], features["test"].label)


def run(verify, checks, tmp_path, monkeypatch, capsys, *more):
    arguments = ["verify_real.py", "--out", str(tmp_path), "--data-root", str(tmp_path / "none")]
    monkeypatch.setattr(sys, "argv", [*arguments, *more])
    monkeypatch.setenv("FEATSTORE_OFFLINE", "1")
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path / "home"))
    with pytest.raises(SystemExit) as stop:
        verify.main(checks)
    return stop.value.code, capsys.readouterr().out


def stand_in(verify, published):
    return verify.Check("tiny-vit-random", "textures", "knn-marks", published, "this test")


@pytest.mark.parametrize(
    ("shift", "word", "status"), [(0.25, "reproduced", 0), (-0.4, "differs", 1)]
)
def test_a_number_within_three_tenths_is_reproduced_and_no_other(
    verify, measured, shift, word, status, tmp_path, monkeypatch, capsys
):
    checks = [stand_in(verify, measured + shift)]
    code, out = run(verify, checks, tmp_path, monkeypatch, capsys)
    assert (code, out.splitlines()[1].split()[0]) == (status, word)
    assert f"{measured:.2f}" in out
    assert f"{int(word == 'reproduced')} of 1 reproduced" in out


def test_what_cannot_be_had_is_said_and_does_not_keep_the_others_from_running(
    verify, measured, tmp_path, monkeypatch, capsys
):
    absent = replace(verify.CHECKS[0], model="tiny-vit-random")
    checks = [absent, stand_in(verify, measured)]
    code, out = run(verify, checks, tmp_path, monkeypatch, capsys)
    assert code == 2
    assert [line.split("  ")[0].strip() for line in out.splitlines() if "tiny-vit" in line] == [
        "not run",
        "reproduced",
    ]
    assert "imagenet" in out
    assert "1 of 2 reproduced" in out


def test_the_checks_name_models_datasets_and_protocols_that_there_are(verify):
    from featstore.datasets import expand as datasets
    from featstore.models import catalogue
    from featstore.probes import get

    assert {check.published for check in verify.CHECKS} == {67.5, 76.1, 94.02, 91.42}
    for check in verify.CHECKS:
        assert check.model in catalogue()
        assert datasets([check.dataset]) == [check.dataset]
        assert get(check.protocol).name == check.protocol
    assert len(get(verify.CIFAR_PROTOCOL).log10_c) == 17
