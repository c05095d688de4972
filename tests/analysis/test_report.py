"""The report as a browser would read it: numbers, links, and what thin results leave of it."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from featstore.analysis.correlate import correlate_domains, correlate_protocols
from featstore.analysis.rank import rank_models
from featstore.analysis.report import coefficient, duration, percent, report, signed

VOID = {"meta", "link", "br", "wbr", "img", "hr", "input"}


class Page(HTMLParser):
    """Text, attributes and tables of a page; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.tables, self.words = [], [], {}, []
        self.table = self.cell = None
        self.feed(text)
        self.close()
        assert not self.open
        self.text = re.sub(r"\s+", " ", "".join(self.words)).replace(" .", ".")

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.table = self.tables.setdefault(attrs["id"], [])
        elif tag == "tr":
            self.table.append([])
        elif tag in ("td", "th"):
            self.cell = ["", attrs.get("data-v")]
            self.table[-1].append(self.cell)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)
        if self.cell is not None:
            self.cell[0] += data

    def rows(self, table):
        """Body rows by their first cells' text, header row apart."""
        head, *body = self.tables[table]
        return [cell[0].strip() for cell in head], body


@pytest.fixture(scope="module")
def path(results, tmp_path_factory):
    return report(results, tmp_path_factory.mktemp("report") / "report.html", resamples=100)


@pytest.fixture(scope="module")
def page(path):
    return Page(path.read_text(encoding="utf-8"))


def make_page(results, tmp_path):
    return Page(report(results, tmp_path / "r.html", resamples=20).read_text(encoding="utf-8"))


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
        correlate_protocols(results, models=models, by_dataset=False, resamples=100)
        for models in ("independent", "all")
    ]
    for row in body:
        a, b = (cell[0].replace(" †", "") for cell in row[:2])
        for start, table in zip((2, 5), tables, strict=True):
            pair = table.sel(protocol=a, other=b)
            for offset, k in ((0, "pearson"), (1, "spearman")):
                numbers = (pair[k + end].item() for end in ("", "_low", "_high"))
                expected = "{:.2f} [{:.2f}, {:.2f}]".format(*numbers).replace("-", "−")
                assert row[start + offset][0] == expected
            assert int(row[start + 2][0]) == pair["n"]

    head, body = page.rows("domains-table")
    domains = correlate_domains(results, resamples=100)
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

    table = correlate_protocols(results, by_dataset=False, resamples=100)
    r = table["pearson"].where(~np.eye(11, dtype=bool))
    for word, value in (("most", r.max()), ("least", r.min())):
        assert f"agree {word}, r = {value.item():.2f}" in page.text
    predictor = correlate_domains(results, resamples=100)["pearson_mean"]
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
        assert f"BN mode {mode} instead of eval changes" in page.text
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
    assert head == ["Model", "batch − eval", "adapt − eval"]
    for row in body:
        scores = results["score"].sel(model=row[0][0])
        for cell, mode in zip(row[1:], ("batch", "adapt"), strict=True):
            change = scores.sel(bn_mode=mode) - scores.sel(bn_mode="eval")
            assert float(cell[1]) == pytest.approx(change.mean().item())


def test_pictures_carry_their_numbers_as_text_and_a_description(results, page):
    pictures = [attrs for tag, attrs in page.elements if tag == "svg" and "role" in attrs]
    assert len(pictures) == 11 + 4 + 10 + 6 + 1
    assert all(len(attrs["aria-label"]) > 30 for attrs in pictures)
    score = results["score"].sel(model="simclr-vit", dataset="faces", bn_mode="eval").values[7]
    assert f"{100 * score:.1f}" in page.text
    assert "digits-texture" in page.text


def test_nothing_is_loaded_and_every_link_has_its_target(path, page):
    text = path.read_text(encoding="utf-8")
    assert "http" not in text
    assert not re.search(r"@import|src=|<link", text)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text)
    assert {a or b for a, b in targets} <= set(ids)
    assert path.stat().st_size < 2_500_000


def test_every_column_can_be_sorted_with_the_keyboard(page):
    heads = [i for i, (tag, attrs) in enumerate(page.elements) if attrs.get("scope") == "col"]
    assert len(heads) > 40
    assert all(page.elements[i + 1][0] == "button" for i in heads)
    regions = [attrs for _, attrs in page.elements if attrs.get("class") == "wide"]
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in regions)


def test_the_same_results_give_the_same_bytes(results, path, tmp_path):
    again = report(results, tmp_path / "again.html", resamples=100)
    assert again.read_bytes() == path.read_bytes()


def test_a_dagger_marks_transductive_protocols(page):
    assert "knn-marks-zscore-own †" in page.text
    assert "† marks a protocol that sees all test images at once" in page.text


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
    holed = results.isel(protocol=[0, 1, 7], bn_mode=[0, 2]).copy(deep=True)
    holed["score"].loc[{"protocol": "logreg"}] = np.nan
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
    text = report(odd, tmp_path / "odd.html", resamples=20).read_text(encoding="utf-8")
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
    made = report(
        small, tmp_path / "new" / "folder" / "r.html", reference="knn-marks", resamples=20
    )
    assert "Each protocol against knn-marks" in Page(made.read_text(encoding="utf-8")).text
    with pytest.raises(ValueError, match="reference must be one of knn-marks, logreg, got 'x'"):
        report(small, tmp_path / "r.html", reference="x")


def test_results_without_a_cell_are_refused(results, tmp_path):
    with pytest.raises(ValueError, match="results hold no cell"):
        report(results.where(False), tmp_path / "r.html")


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (percent, 0.8421, "84.2"),
        (percent, np.nan, "–"),
        (signed, -0.0123, "−1.2"),
        (signed, -0.0001, "+0.0"),
        (coefficient, -0.004, "0.00"),
        (coefficient, -0.5, "−0.50"),
        (duration, 0.034, "0.03 s"),
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
    expected = report(few, tmp_path / "fixed.html", resamples=20)
    texts = [name for name in few.coords if few[name].dtype.kind == "U"]
    other = few.assign_coords(
        {name: (few[name].dims, few[name].values.astype(dtype)) for name in texts}
    )
    assert {other[name].dtype.kind for name in ("stage", "shift")} == {np.dtype(dtype).kind}
    found = report(other, tmp_path / "other.html", resamples=20)
    assert found.read_bytes() == expected.read_bytes()
