"""Tables for papers and pages: their numbers, their marks, and that names survive them."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from featstore.analysis.differences import compare_models
from featstore.analysis.text_tables import text_table
from featstore.results import Cell, open_results, record

NASTY = r"50%_a&b#c$d{e}~f^g\h|i<j>*k`[l]"
RIGHT = {"good": 0.8, NASTY: 0.78, "poor": 0.4, "early": 0.9}


def put(root, model, dataset, protocol, share, *, metric="top1", n=200):
    """A record whose test images are told right as often as `share`, the same ones first."""
    kind = "statistic" if metric == "logme" else "linear"
    hard = np.random.default_rng(7).random(n) + np.random.default_rng(len(model)).random(n) / 20
    rank = np.where(hard < np.quantile(hard, share), 0, 2)
    value = -3.25 if kind == "statistic" else float((rank == 0).mean())
    ends = {"value": value, "low": None, "high": None}
    facts = {
        "metrics": {metric: ends}, "headline": metric, "certificate": {}, "splits": {},
        "n_train": 9, "n_test": n, "n_skipped": 0, "n_categories": 4, "seconds": 0.1,
        "settings": {"kind": kind, "scale": "real" if kind == "statistic" else "share"},
        "transductive": protocol == "own",
        "model_info": {"backbone": "resnet", "family": "f", "pretraining": [], "bn_free": False,
                       "stage": "early" if model == "early" else "late", "lineage": model},
        "dataset_info": {"metric": metric, "source": "x"},
        "versions": {"featstore": "0.1.0"},
    }  # fmt: skip
    kept = {"index": np.arange(n), "label": np.arange(n) % 4, "rank": rank}
    if kind == "statistic":
        kept = {}
    record(root, Cell(model, dataset, "eval", protocol, 0, "a" * 64), facts, kept)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tables") / "r"
    for model, share in RIGHT.items():
        for dataset, easier in (("d_1", 0.0), ("e&f", 0.05)):
            put(root, model, dataset, "logreg", share + easier)
        put(root, model, "d_1", "own", share / 2)
        put(root, model, "d_1", "logme", share, metric="logme")
        put(root, model, "e&f", "map", share, metric="map")
    put(root, "poor", "e&f", "own", 0.3)
    return root


def latex_rows(text):
    """Names and cells by a reader of its own: marks are kept, escapes are undone."""
    body = re.search(r"\\toprule\n(.*)\\bottomrule", text, re.S)[1].replace("\\midrule\n", "")
    rows = [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in body.splitlines()]
    words = {r"\textbackslash{}": "\\", r"\textasciicircum{}": "^", r"\textasciitilde{}": "~",
             r"\textless{}": "<", r"\textgreater{}": ">", r"\textbar{}": "|"}  # fmt: skip
    pattern = re.compile("|".join(map(re.escape, words)) + r"|\\([_%&#${}])")
    undo = lambda text: pattern.sub(lambda m: m[1] or words[m[0]], text)  # noqa: E731
    return [[undo(row[0]), *(row[1:] if n else map(undo, row[1:]))] for n, row in enumerate(rows)]


def markdown_rows(text):
    lines = [line[2:-2] for line in text.splitlines() if line.startswith("| ")]
    rows = [re.split(r" (?<!\\)\| ", line) for line in lines]
    return [[re.sub(r"\\(.)", r"\1", cell) for cell in row] for row in rows if row[0] != "---"]


READERS = {"latex": latex_rows, "markdown": markdown_rows}
MARKS = {
    "latex": (r"\\textbf{(.*)}", r"\\underline{(.*)}"),
    "markdown": (r"\*\*(.*)\*\*", r"<u>(.*)</u>"),
}


def parted(cell, form):
    """Number and mark of a cell."""
    for mark, pattern in zip(("bold", "underlined"), MARKS[form], strict=True):
        if found := re.fullmatch(pattern, cell):
            return float(found[1]), mark
    return float(cell), ""


@pytest.mark.parametrize("form", ["latex", "markdown"])
def test_a_table_of_one_protocol_has_its_scores_and_what_the_tests_say(root, form):
    results = open_results(root)
    text = text_table(results, form=form, protocol="logreg", root=root)
    head, *rows = READERS[form](text)
    assert head == ["model", "d_1", "e&f"]
    assert [row[0] for row in rows] == ["good", NASTY, "poor"]
    for column, dataset in enumerate(head[1:], 1):
        found = compare_models(root, dataset=dataset, protocol="logreg")
        for row in rows:
            number, mark = parted(row[column], form)
            score = results["score"].sel(model=row[0], dataset=dataset, protocol="logreg").item()
            assert number == pytest.approx(100 * score, abs=0.05)
            best = found["model"][0] == row[0]
            apart = bool(found["separable_from_best"].sel(model=row[0]))
            assert mark == ("bold" if best else "" if apart else "underlined")
    assert [parted(row[1], form)[1] for row in rows] == ["bold", "underlined", ""]
    assert "3 models by logreg in BN mode eval; 200 test images a dataset." in text
    assert "Holm-adjusted, level .05" in text


@pytest.mark.parametrize("form", ["latex", "markdown"])
def test_a_table_of_all_protocols_has_means_over_all_their_datasets(root, form):
    results = open_results(root)
    text = text_table(results, form=form, root=root, models="all")
    head, *rows = READERS[form](text)
    assert head == ["model", "logreg", "map", "own"]  # logme is no share
    means = results["score"].sel(bn_mode="eval", protocol="logreg").mean("dataset")
    assert {row[0]: parted(row[1], form)[0] for row in rows} == {
        name: pytest.approx(100 * means.sel(model=name).item(), abs=0.05) for name in RIGHT
    }
    own = {row[0]: row[3] for row in rows}
    missing = {"latex": "--", "markdown": "–"}[form]
    assert [name for name, cell in own.items() if cell != missing] == ["poor"]
    assert "Not tested: map, own." in text
    assert "Statistics of the test images are used by own." in text


def test_without_records_nothing_is_underlined_and_the_caption_says_so(root):
    text = text_table(open_results(root), form="markdown", protocol="logreg")
    assert "<u>" not in text
    assert text.count("**") == 4
    assert "no test was made of which others differ" in text


def test_only_models_of_the_table_are_tested(root):
    results = open_results(root).sel(model=[NASTY, "poor"])
    text = text_table(results, form="markdown", protocol="logreg", root=root)
    assert [parted(row[1], "markdown")[1] for row in markdown_rows(text)[1:]] == ["bold", ""]


def test_predictions_that_are_damaged_are_named_and_test_nothing(root, tmp_path, caplog):
    copy = tmp_path / "r"
    shutil.copytree(root, copy)
    bad = next(copy.glob("good/d_1/eval/logreg/*.npz"))
    bad.write_bytes(bad.read_bytes()[:-9])
    text = text_table(open_results(copy), form="markdown", protocol="logreg", root=copy)
    assert r"Not tested: d\_1." in text
    assert f"not tested: {bad} is not what was written" in caplog.text


def test_equal_scores_are_all_best(tmp_path):
    for model in "abc":
        put(tmp_path, model, "d", "logreg", 0.5)
    text = text_table(open_results(tmp_path), form="markdown", root=tmp_path)
    assert [parted(row[1], "markdown")[1] for row in markdown_rows(text)[1:]] == ["bold"] * 3


def test_scores_that_are_no_shares_are_no_percentages(root):
    text = text_table(open_results(root), form="markdown", protocol="logme", root=root)
    assert "**-3.25**" in text
    assert "%" not in text.replace(r"50%\_a", "")
    assert "no test was made" in text


def test_what_does_not_exist_is_refused(root):
    results = open_results(root)
    for wrong in ({"form": "html"}, {"protocol": "x"}, {"bn_mode": "batch"}, {"models": "some"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be one of"):
            text_table(results, **({"form": "latex"} | wrong))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_latex_compiles_and_no_table_is_wider_than_the_page(root, make_study, tmp_path):
    few = text_table(open_results(root), form="latex", protocol="logreg", root=root)
    many = text_table(make_study(n_datasets=12), form="latex")
    head = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "t.tex").write_text(f"{head}\n{few}\n{many}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "Overfull" not in done.stdout


def test_long_names_of_columns_are_turned(root, make_study):
    few = text_table(open_results(root), form="latex", protocol="logreg", root=root)
    many = text_table(make_study(), form="latex")
    assert r"\rotatebox" not in few
    assert r"& \rotatebox{90}{knn-marks\,} &" in many


def test_braces_of_latex_are_balanced(root):
    text = text_table(open_results(root), form="latex", protocol="logreg", root=root)
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    body = re.search(r"\\toprule\n(.*)\\bottomrule", text, re.S)[1].replace("\\midrule\n", "")
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines()} == {2}


def test_the_command_writes_what_a_files_name_asks_for(root, tmp_path, call):
    for name, more, sign in (
        ("t.tex", ["-p", "logreg"], r"\toprule"),
        ("t.md", ["--all-models"], "| early |"),
        ("u", ["--format", "markdown"], "| poor |"),
    ):
        command = ["export", "--results", root, "--out", tmp_path / name, *more]
        status, _, err = call(*command)
        assert (status, err) == (0, "")
        assert sign in (tmp_path / name).read_text(encoding="utf-8")
        assert call(*command)[0] == 1  # it is there
    status, _, err = call("export", "--results", root, "--out", tmp_path / "t.csv", "-p", "logreg")
    assert (status, "leave out --protocol" in err) == (2, True)


def test_commands_leave_damaged_records_out_if_told(root, tmp_path, call, caplog):
    copy = tmp_path / "r"
    shutil.copytree(root, copy)
    bad = next(copy.glob("good/d_1/eval/logreg/*.json"))
    bad.write_text("{")
    for out in ("t.csv", "t.tex"):
        command = ["export", "--out", tmp_path / out, "--results", copy]
        status, _, err = call(*command)
        assert (status, str(bad) in err) == (1, True)
        caplog.clear()
        assert call(*command, "--skip-errors")[0] == 0
        assert f"left out: {bad} cannot be read" in caplog.text
    assert call("report", "--out", tmp_path / "r.html", "--results", copy)[0] == 1
    command = ["report", "--out", tmp_path / "r.html", "--results", copy, "--skip-errors"]
    assert call(*command)[0] == 0
