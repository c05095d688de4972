"""`featstore compare`, on made-up records beside numbers of the printed tables."""

import csv
import json

import pytest

from .analysis.made_records import put


@pytest.fixture
def run(tmp_path, monkeypatch, call):
    """A command in a folder with records of three models on two datasets."""
    monkeypatch.chdir(tmp_path)
    # Printed are 93.99, 93.26 and 80.28 on CIFAR-10, 83.68 on VOC2007.
    for model, value in (("swav", 0.945), ("byol-deepmind", 0.92), ("insdis", 0.8028)):
        put(tmp_path / "data/results", value, model=f"{model}-resnet50",
            dataset="cifar10@ericsson", protocol="logreg-ericsson")  # fmt: skip
    put(tmp_path / "data/results", 0.84, model="swav-resnet50", dataset="voc2007@ericsson",
        protocol="logreg-ericsson", headline="map11", half=float("nan"))  # fmt: skip
    return call


def test_cells_stand_in_a_table_with_what_they_come_to(run):
    status, out, _ = run("compare", "--study", "ericsson2021")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["swav-resnet50", "94.50", "93.50", "..", "95.50", "93.99", "+0.51", "yes"] in lines
    assert ["byol-deepmind-resnet50", "92.00", "91.00", "..", "93.00", "93.26", "-1.26", "no"] in (
        lines
    )
    assert ["swav-resnet50", "84.00", "–", "83.68", "+0.32", "–"] in lines
    assert ["logreg-ericsson", "cifar10@ericsson", "3", "2", "of", "3", "0.59", "–", "–"] in lines
    assert "logreg-ericsson: their solver stops after 100 iterations" in out
    assert "detection-frozen: featstore runs no detection" in out
    assert out.strip().endswith(
        "4 cells of 3 models, 2 datasets, 1 protocol: theirs lies inside our 95 % interval in 2 of "
        "3; mean absolute difference 0.52 points"
    )
    assert "nan" not in out


def test_json_is_one_line_without_nan(run):
    status, out, _ = run("compare", "--json")
    assert status == 0
    assert out.count("\n") == 1
    found = json.loads(out, parse_constant=pytest.fail)
    assert (found["n_cells"], found["n_inside"], found["n_with_interval"]) == (4, 2, 3)
    assert [one["inside"] for one in found["cells"]] == [False, True, True, None]
    assert found["agreement"][0]["n"] == 3
    assert found["agreement"][0]["spearman"] is None


def test_cells_are_written_as_csv_and_nothing_is_replaced(run, tmp_path):
    status, out, _ = run("compare", "--out", "sub/beside.csv")
    assert status == 0
    assert out.endswith("wrote sub/beside.csv\n")
    rows = list(csv.DictReader((tmp_path / "sub/beside.csv").read_text().splitlines()))
    assert len(rows) == 4
    assert float(rows[0]["theirs"]) == pytest.approx(0.9326)
    assert "100 iterations" in rows[0]["differences"]
    status, _, error = run("compare", "--out", "sub/beside.csv")
    assert status == 1
    assert error == ("featstore: sub/beside.csv exists. Use --overwrite, or another --out\n")
    assert run("compare", "--out", "sub/beside.csv", "--overwrite")[0] == 0


def test_a_damaged_record_is_named_and_left_out_only_if_told(run, tmp_path):
    (path,) = (tmp_path / "data/results").glob("insdis-*/*/*/*/*.json")
    path.write_text(path.read_text()[:60])
    status, out, error = run("compare")
    assert (status, out, error.count("\n")) == (1, "", 1)
    assert f"{path.relative_to(tmp_path)} cannot be read" in error
    assert "--skip-errors" in error
    status, out, _ = run("compare", "--skip-errors", "--json")
    assert (status, json.loads(out)["n_cells"]) == (0, 3)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (
            ("--study", "model-cards"),
            1,
            "share no cell with model-cards: in BN mode eval they",
        ),
        (("--study", "marks2024"), 2, "There are ericsson2021 and model-cards"),
        (("--bn-mode", "adapt"), 2, "bn_mode must be one of eval, got 'adapt'"),
        (("--results", "nowhere"), 1, "no results in nowhere"),
    ],
)
def test_what_cannot_be_compared_ends_in_one_line(run, options, status, words):
    found, out, error = run("compare", *options)
    assert found == status
    assert out == ""
    assert words in error
    assert error.count("\n") == 1
