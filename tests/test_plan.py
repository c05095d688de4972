"""Plans against what extraction then does, and against sums by hand from the published counts."""

import json

import pytest
import torch
from PIL import Image
from timm import create_model

import featstore
from featstore.datasets import catalogue as datasets
from featstore.errors import UnknownNameError
from featstore.models import catalogue as models
from featstore.models.blueprint import blueprint
from featstore.models.encoder import embed
from featstore.plan import plan

TINY = ["tiny-resnet-random", "tiny-vit-random", "tiny-vit-random@avg"]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path / "home"))
    return tmp_path / "s.zarr"


def stored_bytes(store):
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


def test_a_plan_says_what_extraction_then_does(store):
    made = plan(TINY, ["textures", "digits-blur"], bn_modes=["eval", "adapt"], store=store)
    assert [line.dataset for line in made.lines] == ["textures", "digits-blur"]
    assert made.total.cells == 2 * (2 + 2)  # a ResNet in two modes, a transformer at two sites
    assert made.total.done == 0
    assert made.rate == ""
    assert made.total.seconds is None
    assert made.missing == []
    done = featstore.extract(
        TINY, ["textures", "digits-blur"], bn_modes=["eval", "adapt"], store=store
    )
    assert made.total.images == done.images
    assert done.filled == made.total.cells * 2  # splits
    embedding = sum(
        2 * split.shape[0] * split.shape[1] for split in featstore.Store(store).splits()
    )
    assert embedding < made.total.bytes < 3 * stored_bytes(store)


def test_what_is_stored_is_done_and_costs_nothing(store):
    featstore.extract(TINY, ["textures"], splits=["test"], store=store)
    part = plan(TINY, ["textures"], store=store)
    assert (part.total.done, part.total.cells) == (0, 3)
    whole = plan(TINY, ["textures"], splits=["test"], store=store)
    assert (whole.total.done, whole.total.passes, whole.total.bytes) == (3, 0, 0)
    assert whole.total.seconds == 0
    lacking = len(featstore.load_dataset("textures").split("train"))
    assert part.total.embeddings == 2 * lacking  # two models; the sites of one share a pass


def test_time_is_embeddings_by_the_rate_given_or_measured(store):
    given = plan(TINY, ["textures"], store=store, rate=100.0)
    assert given.total.seconds == pytest.approx(given.total.embeddings / 100)
    featstore.extract(["tiny-vit-random"], ["digits-blur"], store=store)
    lines = [json.loads(line) for line in store.with_suffix(".log.jsonl").read_text().splitlines()]
    speeds = sorted(line["images"] / line["seconds"] for line in lines)
    measured = plan(["tiny-vit-random"], ["textures"], store=store)
    assert "measured" in measured.rate
    median = sum(speeds) / 2  # of two splits
    assert measured.total.seconds == pytest.approx(measured.total.embeddings / median, rel=0.01)


def test_a_log_that_was_cut_off_is_read_as_far_as_it_goes(store):
    lines = ['{"splits": ["tiny-vit-random digits eval test"], "images": 50, "seconds": 2}']
    store.with_suffix(".log.jsonl").write_text("\n".join([*lines, "{}", '{"finished":']))
    made = plan(["tiny-vit-random"], ["textures"], store=store)
    assert made.total.seconds == pytest.approx(made.total.embeddings / 25)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"dtype": "int8"}, "dtype must be float16 or float32, got 'int8'"),
        ({"views": -1}, "views must be 0 or more, got -1"),
        ({"rate": -5.0}, "rate must be more than 0 images/s, got -5"),
    ],
)
def test_an_option_out_of_its_range_is_refused(store, option, said):
    with pytest.raises(ValueError, match=said):
        plan(["tiny-vit-random"], ["textures"], store=store, **option)


def test_views_are_embedded_besides_in_the_same_decoding_pass(store):
    plain = plan(["tiny-vit-random"], ["textures"], store=store).total
    views = plan(["tiny-vit-random"], ["textures"], store=store, views=3).total
    train = len(featstore.load_dataset("textures").split("train"))
    assert views.embeddings - plain.embeddings == 3 * train
    assert (views.passes, views.images) == (plain.passes, plain.images)
    done = featstore.extract(["tiny-vit-random"], ["textures"], store=store, views=3)
    assert (done.images, done.filled) == (views.images, 2 + 3)


def test_both_studies_can_be_planned_without_a_file(store):
    made = plan(["marks2024"], ["marks2024"], store=store, rate=1000)
    counts = {  # as the study prints them
        "imagenet@marks": 1_281_167 + 50_000,
        "inaturalist@marks": 500_000 + 100_000,
        "cub@marks": 5_994 + 5_794,
        "cifar100@marks": 60_000,
    }
    found = {line.dataset: line for line in made.lines}
    assert len(found) == 11
    assert {name: found[name].images for name in counts} == counts
    assert made.total.cells == 26 * 11
    assert {line.passes for line in made.lines} == {2}  # all models share a pass over each split
    imagenet = found["imagenet@marks"]
    assert imagenet.embeddings == 26 * imagenet.images
    widths = 17 * 2048 + 9 * 768
    assert imagenet.bytes == imagenet.images * (2 * widths + 26 * 80)
    assert imagenet.seconds == pytest.approx(imagenet.embeddings / 1000)
    missing = {one.what: one for one in made.missing}
    assert len([name for name in missing if name in models()]) == 26
    assert len([name for name in missing if name in datasets()]) == 11
    assert missing["byol-resnet50"].status == "by hand"
    assert "drive.google.com" in missing["byol-resnet50"].source
    assert missing["swav-resnet50"].status == "fetchable"
    assert "account" in missing["imagenet"].licence
    many = plan(["ericsson2021"], ["ericsson2021"], store=store)
    assert many.total.cells == 14 * 11


def test_a_dataset_that_nobody_has_counted_is_unknown_and_the_rest_is_planned(store, tmp_path):
    for name in ("train/a", "train/b", "test/a"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / "0.png")
    made = plan(["tiny-vit-random"], [f"folder:{tmp_path}/photos", "cifar10"], store=store)
    assert [line.images for line in made.lines] == [3, 60_000]
    (tmp_path / "photos" / "test" / "a" / "0.png").unlink()
    with pytest.raises(featstore.FeatStoreError, match="holds no image"):
        plan(["tiny-vit-random"], [f"folder:{tmp_path}/photos"], store=store)


def test_unknown_names_are_refused(store):
    with pytest.raises(UnknownNameError, match="unknown model 'tiny-vit'"):
        plan(["tiny-vit"], ["digits"], store=store)
    with pytest.raises(UnknownNameError, match="unknown dataset 'digit'"):
        plan(["tiny-vit-random"], ["digit"], store=store)


@pytest.mark.parametrize(
    "arch", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto"]
)
def test_widths_are_known_without_weights(arch):
    module = create_model(arch, num_classes=0).eval()
    sites = ["", "avg", *(["cls", "cls+avg", "cls-last4"] if hasattr(module, "cls_token") else [])]
    with torch.inference_mode():
        found = embed(module, torch.zeros(1, 3, 224, 224), sites)
    expected = {site: rows.shape[1] for site, rows in found.items()}
    assert {site: blueprint(f"timm:{arch}").width(site) for site in sites} == expected


def test_random_weights_are_planned_under_their_own_name(store):
    asked = {"weights": "random", "seed": 3, "store": store}
    made = plan(["swav-resnet50", "tiny-vit-mae@avg~x"], ["textures"], **asked)
    assert (made.total.done, made.missing) == (0, [])
    featstore.extract(["tiny-vit-mae@avg~x"], ["textures"], **asked)
    assert plan(["tiny-vit-mae@avg~x"], ["textures"], **asked).total.done == 1
    assert plan(["tiny-vit-mae@avg~x"], ["textures"], store=store).total.done == 0
