"""The map of models, and how far BN modes move them, read back from made-up similarities."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy import stats

from featstore.analysis.similarity import bn_displacement, similarity_map
from featstore.analysis.style import family_colours

MODES = ["eval", "batch", "adapt"]
FAMILIES = ["contrastive", "supervised", "contrastive", "random", "supervised", "contrastive"]


@pytest.fixture
def found():
    """Six models of two kinds, the first and the last without BatchNorm; nothing was measured."""
    rng = np.random.default_rng(0)
    sizes = (2, 6, 3, 6, 3)
    kind = np.arange(6) % 2
    cka = np.where(kind[:, None] == kind, 0.8, 0.1)[None, :, None, :, None]
    cka = cka + rng.uniform(-0.05, 0.05, sizes)
    cka = (cka + cka.transpose(0, 3, 4, 1, 2)) / 2
    for model in range(6):
        for mode in range(3):
            cka[:, model, mode, model, mode] = 1
    same = np.eye(6, dtype=bool)[:, None, :, None]
    moved = np.where(same, rng.uniform(0.5, 1.5, sizes), np.nan)
    dims = ("dataset", "model", "bn_mode", "other", "other_mode")
    names = [f"m{i}" for i in range(6)]
    return xr.Dataset(
        {"cka": (dims, cka), "displacement": (dims, moved)},
        {
            "dataset": ["a", "b"], "model": names, "bn_mode": MODES, "other": names,
            "other_mode": MODES, "family": ("model", FAMILIES),
            "stage": ("model", ["late", "late", "late", "random", "late", "late"]),
            "bn_free": ("model", [True, False, False, False, False, False]),
        },
    )  # fmt: skip


def cells(ax):
    return {(round(t.get_position()[1]), round(t.get_position()[0])): t for t in ax.texts}


def names_of(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def test_every_cell_is_the_mean_over_datasets_of_the_two_models_it_stands_for(found):
    ax = similarity_map(found, bn_mode="batch")
    names = names_of(ax)
    assert names == [label.get_text() for label in ax.get_xticklabels()]
    assert sorted(names) == found["model"].values.tolist()
    mean = found["cka"].sel(bn_mode="batch", other_mode="batch").mean("dataset")
    image = ax.images[0].get_array()
    assert len(cells(ax)) == 36
    for (row, column), text in cells(ax).items():
        value = float(mean.sel(model=names[row], other=names[column]))
        assert image[row, column] == pytest.approx(value)
        assert float(text.get_text()) == pytest.approx(value, abs=0.0051)


def test_alike_models_are_neighbours(found):
    kinds = [int(name[1:]) % 2 for name in names_of(similarity_map(found))]
    assert kinds in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])


def test_a_dataset_by_name_is_that_alone_and_its_holes_are_dashes(found):
    found["cka"].loc[{"dataset": "a", "model": "m1", "other": "m2"}] = np.nan
    found["cka"].loc[{"dataset": "a", "model": "m2", "other": "m1"}] = np.nan
    ax = similarity_map(found, dataset="a")
    names = names_of(ax)
    texts = {(names[i], names[j]): t.get_text() for (i, j), t in cells(ax).items()}
    assert {pair for pair, text in texts.items() if text == "–"} == {("m1", "m2"), ("m2", "m1")}
    one = found["cka"].sel(dataset="a", model="m3", other="m4", bn_mode="eval", other_mode="eval")
    assert float(texts["m3", "m4"]) == pytest.approx(float(one), abs=0.0051)
    assert "–" not in [t.get_text() for t in similarity_map(found).texts]  # b has them


def test_models_that_were_not_compared_in_the_mode_are_left_out(found):
    found["cka"].loc[{"model": "m2"}] = np.nan
    found["cka"].loc[{"other": "m2"}] = np.nan
    assert sorted(names_of(similarity_map(found))) == ["m0", "m1", "m3", "m4", "m5"]
    found["cka"].loc[{"bn_mode": "adapt"}] = np.nan
    with pytest.raises(ValueError, match="no model was compared in BN mode adapt on any dataset"):
        similarity_map(found, bn_mode="adapt")
    for few in (["m0"], ["m0", "m1"]):  # too few to cluster
        assert names_of(similarity_map(found.sel(model=few, other=few))) == few


def test_marks_have_the_colours_of_the_families_and_the_scale_says_what_it_is(found):
    ax = similarity_map(found)
    colours = family_colours(found)
    for marks in ax.collections:  # beside rows, above columns
        shown = [to_hex(colour).upper() for colour in marks.get_facecolors()]
        expected = [colours[FAMILIES[int(name[1:])]].upper() for name in names_of(ax)]
        assert shown == expected
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(colours)
    assert ax.figure.axes[1].get_ylabel() == "linear CKA, debiased"
    assert ax.images[0].get_clim() == (0, 1)


@pytest.mark.parametrize("count", [3, 12, 45])
def test_nothing_is_cut_off(found, count):
    names = [f"timm:vit_small_patch16_224.augreg_in21k_{i}@cls" for i in range(count)]
    which = np.arange(count) % 6
    many = found.isel(model=which, other=which).assign_coords(model=names, other=names)
    ax = similarity_map(many)
    figure = ax.figure
    figure.draw_without_rendering()  # lays it out
    whole = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert figure.bbox.x0 <= whole.x0
    assert figure.bbox.y0 <= whole.y0
    assert whole.x1 <= figure.bbox.x1
    assert whole.y1 <= figure.bbox.y1
    assert bool(ax.texts) == (count < 40)  # no numbers where they could not be read
    # names stand apart from their marks
    label = ax.get_yticklabels()[0].get_window_extent()
    (mark, _), *_ = ax.collections[0].get_offset_transform().transform([(0, 0)])
    assert label.x1 < mark - 3 < mark + 3 < ax.bbox.x0
    label = ax.get_xticklabels()[0].get_window_extent()
    (_, mark), *_ = ax.collections[1].get_offset_transform().transform([(0, 1)])
    assert ax.bbox.y1 < mark - 3 < mark + 3 < label.y0


def test_a_given_axes_is_drawn_on_and_returned(found):
    ax = Figure().add_subplot()
    assert similarity_map(found, ax=ax) is ax


def test_names_that_do_not_exist_are_refused(found):
    with pytest.raises(ValueError, match="dataset must be one of a, b, got 'c'"):
        similarity_map(found, dataset="c")
    with pytest.raises(ValueError, match="bn_mode must be one of eval, batch, adapt, got 'x'"):
        similarity_map(found, bn_mode="x")
    with pytest.raises(ValueError, match="bn_mode must be one of eval, batch, adapt, got 'x'"):
        bn_displacement(found, baseline="x")
    with pytest.raises(ValueError, match="models must be one of independent, all, got 'some'"):
        bn_displacement(found, models="some")


def test_a_model_is_moved_as_far_as_its_own_cells_say(found):
    table = bn_displacement(found)
    assert table["cka"].dims == table["displacement"].dims == ("bn_mode", "model")
    assert table["bn_mode"].values.tolist() == ["batch", "adapt"]
    assert table["model"].values.tolist() == ["m1", "m2", "m3", "m4", "m5"]  # that have BatchNorm
    for name in ("cka", "displacement"):
        for mode in ("batch", "adapt"):
            for model in table["model"].values:
                own = found[name].sel(bn_mode="eval", other_mode=mode, model=model, other=model)
                assert float(table[name].sel(bn_mode=mode, model=model)) == float(own.mean())
    assert (table["n_datasets"] == 2).all()
    turned = bn_displacement(found, baseline="batch")
    assert turned["bn_mode"].values.tolist() == ["eval", "adapt"]
    own = found["displacement"].sel(bn_mode="batch", other_mode="eval", model="m1", other="m1")
    assert float(turned["displacement"].sel(bn_mode="eval", model="m1")) == float(own.mean())


def test_means_are_of_independent_models_with_intervals_over_them(found):
    table = bn_displacement(found)
    for name in ("cka", "displacement"):
        for mode in ("batch", "adapt"):
            one = table.sel(bn_mode=mode)
            values = one[name].sel(model=["m1", "m2", "m4", "m5"]).values  # m3 is random
            assert float(one[f"{name}_mean"]) == pytest.approx(values.mean())
            low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
            assert float(one[f"{name}_mean_low"]) == pytest.approx(low)
            assert float(one[f"{name}_mean_high"]) == pytest.approx(high)
    assert table["n_models"].values.tolist() == [4, 4]
    every = bn_displacement(found, models="all")
    assert every["n_models"].values.tolist() == [5, 5]
    assert every["cka_mean"].values == pytest.approx(every["cka"].mean("model").values)


def test_holes_and_few_models_give_what_can_be_given(found):
    found["cka"].loc[{"dataset": "a", "other_mode": "adapt"}] = np.nan
    found["cka"].loc[{"model": "m1", "other_mode": "batch"}] = np.nan
    table = bn_displacement(found)
    assert (table["n_datasets"].sel(bn_mode="adapt") == 1).all()
    assert table["n_models"].values.tolist() == [3, 4]
    assert np.isnan(table["cka_mean_low"].values).tolist() == [True, False]
    assert np.isfinite(table["cka_mean"]).all()
    none = bn_displacement(found.isel(model=[0], other=[0]))  # it has no BatchNorm
    assert none.sizes["model"] == 0
    assert none["n_models"].values.tolist() == [0, 0]
    assert np.isnan(none["cka_mean"]).all()
    alone = bn_displacement(found.isel(bn_mode=[0], other_mode=[0]))
    assert alone.sizes["bn_mode"] == 0
