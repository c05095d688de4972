"""`results.featstore`: there whatever is imported first, and the same as the functions."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import featstore
from featstore.reporting.accessor import Accessor

DIMS = ("model", "dataset", "bn_mode", "protocol")


def results():
    rng = np.random.default_rng(0)
    score = rng.uniform(0.3, 0.9, (6, 3, 1, 3)) + np.linspace(-0.2, 0.05, 6)[:, None, None, None]
    texts = {
        "backbone": "model", "family": "model", "method": "model", "stage": "model",
        "lineage": "model", "cluster": "dataset",
    }  # fmt: skip
    sizes = {"model": 6, "dataset": 3}
    return xr.Dataset(
        {"score": (DIMS, score), "low": (DIMS, score - 0.03), "high": (DIMS, score + 0.04),
         "seconds": (DIMS, score), "n_test": (DIMS, np.full(score.shape, 200.0)),
         "transductive": (DIMS[2:], np.zeros((1, 3), bool))},
        {"model": list("abcdef"), "dataset": ["d", "e", "f"], "bn_mode": ["eval"],
         "protocol": ["knn", "logreg", "ridge"],
         "bn_free": ("model", [False] * 6),
         "shift": ("dataset", ["in-domain", "edges", "blur"]),
         "kind": ("protocol", ["knn", "linear", "ridge"]),
         "scale": ("protocol", ["share"] * 3),
         **{name: (dim, [""] * sizes[dim]) for name, dim in texts.items()}},
    )  # fmt: skip


ORDERS = {
    "featstore first": "import featstore; assert 'xarray' not in sys.modules; import xarray",
    "xarray first": "import xarray, featstore",
    "asked for before": "import featstore, importlib.util; importlib.util.find_spec('xarray'); "
    "import xarray",
    "from a thing of it": "import featstore; from xarray.core import dataset; import xarray",
    "again": "import xarray, featstore, importlib; importlib.reload(featstore)",
}


@pytest.mark.parametrize("order", ORDERS)
def test_datasets_have_it_in_every_order_of_imports(order):
    code = (
        f"import sys; {ORDERS[order]}\n"
        "assert 'matplotlib' not in sys.modules and 'scipy' not in sys.modules\n"
        "assert isinstance(xarray.Dataset.featstore, object)\n"
        "try: xarray.Dataset().featstore\n"
        "except ValueError as error: print(error)\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("these are no results: they lack score.")


def test_a_python_without_xarray_says_so_as_ever():
    code = (
        "import sys, featstore\n"
        "sys.path[:] = []\n"
        "try: import xarray\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "No module named 'xarray'\n"


@pytest.mark.parametrize(("method", "function", "arguments"), [
    ("rank", "rank_models", []),
    ("correlate", "correlate_protocols", []),
    ("domains", "correlate_domains", []),
    ("predictors", "predictors", ["logreg"]),
])  # fmt: skip
def test_a_method_is_the_function_of_the_same_results(method, function, arguments):
    one, whole = results(), getattr(featstore, function)
    xr.testing.assert_identical(
        getattr(one.featstore, method)(*arguments, bn_mode="eval"),
        whole(one, *arguments, bn_mode="eval"),
    )
    bound = getattr(one.featstore, method)
    assert list(inspect.signature(bound).parameters) == [*inspect.signature(whole).parameters][1:]
    assert inspect.getdoc(bound) == inspect.getdoc(whole)


def test_pictures_are_made_of_the_results():
    one = results()
    ax = one.featstore.heat_map(protocol="logreg")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["d", "e", "f"]
    assert one.featstore.scatter("knn", "logreg").get_xlabel() == "knn (%)"


def test_two_models_or_two_protocols_are_compared():
    one = results()
    models = one.featstore.compare("a", "b")
    expected = one["score"].sel(model="a") - one["score"].sel(model="b")
    np.testing.assert_allclose(models["difference"], expected.sel(bn_mode="eval"))
    protocols = one.featstore.compare("logreg", "knn")
    assert protocols["protocol"].values.tolist() == ["logreg"]
    expected = one["score"].sel(protocol="logreg") - one["score"].sel(protocol="knn")
    assert protocols["difference"].item() == pytest.approx(expected.mean().item())
    for pair, message in ((("a", "x"), "; x are not"), (("a", "knn"), "; a and knn together are")):
        with pytest.raises(ValueError, match=f"two models, or two protocols, .*{message}"):
            one.featstore.compare(*pair)


@pytest.fixture
def study(tmp_path):
    """Results of the tiny study's store, by one protocol."""
    root = tmp_path / "mine"
    models = ["tiny-vit-supervised", "tiny-vit-random"]
    featstore.extract(models, ["textures"], store=tmp_path / "f.zarr")
    featstore.probe(protocols=["ncm"], store=tmp_path / "f.zarr", results=root, scheduler="sync")
    return root, models


def test_records_are_found_beside_what_was_opened(study, tmp_path):
    root, models = study
    with xr.open_zarr(root.with_suffix(".zarr")) as opened:
        assert opened.featstore.compare(*models)["paired"].all()
        assert opened.sel(bn_mode=["eval"]).featstore.compare(*models)["paired"].all()
        read = opened.load()
    assert "paired test" in read.featstore.table(protocol="ncm", models="all")
    assert "no test was made" in read.featstore.table("latex", root=tmp_path)
    path = read.featstore.report(tmp_path / "r.html")
    assert all(model in path.read_text(encoding="utf-8") for model in models)
    memory = featstore.open_results(root)
    assert memory.featstore.compare(*models)["paired"].all()
    bare = xr.Dataset(read.data_vars, read.coords)  # of no file
    assert not bare.featstore.compare(*models)["paired"].any()
    assert bare.featstore.compare(*models, root=root)["paired"].all()
    root.rename(tmp_path / "elsewhere")
    assert not read.featstore.compare(*models)["paired"].any()


def test_a_dataset_that_is_none_of_results_is_told_so():
    assert inspect.getdoc(Accessor)
    twice = xr.concat(
        [results(), results().isel(model=[0])], "model", data_vars="all", join="outer"
    )
    with pytest.raises(ValueError, match="model a is there twice"):
        twice.featstore.rank()
