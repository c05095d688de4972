"""Plans against what extraction then does, and against sums by hand from the published counts."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from timm import create_model

import featstore
from featstore.datasets import catalogue as datasets
from featstore.errors import CatalogueError, UnknownNameError
from featstore.models import catalogue as models
from featstore.models.blueprint import blueprint
from featstore.models.encoder import embed
from featstore.plan import plan

TINY = ["tiny-resnet-random", "tiny-vit-random", "tiny-vit-random@avg"]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path / "own"))
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


def test_both_studies_can_be_planned_without_a_file(store, tmp_path):
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
    rooms = {room.what: room for room in made.rooms}
    assert rooms["features"].bytes == made.total.bytes
    sizes = [datasets()[name].size for name in missing if name in datasets()]
    assert (rooms["datasets"].bytes, rooms["datasets"].exact) == (sum(sizes), True)
    assert rooms["datasets"].place == str(tmp_path / "own" / "datasets")
    resnet, vit = (sum(p.numel() for p in create_model(arch, num_classes=0).parameters())
                   for arch in ("resnet50", "vit_base_patch16_224"))  # fmt: skip
    assert rooms["weights"].count == 26
    assert rooms["weights"].bytes == pytest.approx(4 * (17 * resnet + 9 * vit), rel=0.01)
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


def test_what_is_absent_is_listed_with_its_place(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "hub")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "torch")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "catalogue.toml").write_text(
        '[models.mine]\narch = "resnet18"\nweights = "runs/last.pt"\n'
        '[datasets.photos]\nreader = "folder"\npath = "pictures"\n'
    )
    own = ["mine", "file:gone.pt#arch=resnet18"]
    timms = ["timm:resnet18", "timm:legacy_seresnet18", "timm:resnet200"]
    absent = ["folder:nowhere", "wds:s-{0..1}.tar", "hf:./none", "photos"]
    asked = [*own, *timms, "timm:resnet34~random0"]
    made = plan(asked, [*absent, "textures"], store=store, splits=["test"], views=0)
    assert [line.images for line in made.lines] == [None] * 4 + [600]
    assert {line.cells for line in made.lines} == {6}
    missing = {one.what: one for one in made.missing}
    assert list(missing) == [*own, *timms, *absent]
    places = {
        "mine": f"{tmp_path}/own/runs/last.pt",
        "file:gone.pt#arch=resnet18": "gone.pt",
        "timm:resnet18": "huggingface.co/timm/resnet18.a1_in1k",
        "timm:legacy_seresnet18": "https://.*seresnet18.*.pth",
        "timm:resnet200": "timm has none",
        "folder:nowhere": f"no folder at {tmp_path}/nowhere",
        "wds:s-{0..1}.tar": "s-0.tar",
        "hf:./none": "no folder none",
        "photos": f"{tmp_path}/own/pictures",
    }
    assert [name for name, one in missing.items() if not re.search(places[name], one.source)] == []
    fetched = [one.what for one in made.missing if one.status == "fetchable"]
    assert fetched == timms[:2]
    assert [room.place for room in made.rooms[1:]] == ["hub", "torch/checkpoints"]
    for path in ("gone.pt", "own/runs/last.pt", "torch/checkpoints/" + fetched_name(missing),
                 "hub/models--timm--resnet18.a1_in1k/snapshots/1/model.safetensors"):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    # As the hub's own code leaves it; without a ref it takes a snapshot for no version.
    (tmp_path / "hub/models--timm--resnet18.a1_in1k/refs").mkdir()
    (tmp_path / "hub/models--timm--resnet18.a1_in1k/refs/main").write_text("1")
    made = plan(asked, ["textures"], store=store)
    assert [one.what for one in made.missing] == ["timm:resnet200"]
    given = plan(asked, ["textures"], store=store, weights="mine.pt")
    assert [one.what for one in given.missing] == ["mine.pt"]


def fetched_name(missing):
    return missing["timm:legacy_seresnet18"].source.rpartition("/")[2]


@pytest.mark.parametrize(
    ("dataset", "option"),
    [
        ("digits", {"splits": ["val"]}),
        ("cifar10", {"splits": ["trian"]}),
        ("digits", {"splits": ["test"], "views": 1}),
        ("digits", {"views": -1}),
        ("flowers102@ericsson-fewshot", {"views": 1}),
    ],
)
def test_splits_and_views_are_refused_as_extraction_does(store, dataset, option):
    said = []
    for call in (plan, featstore.extract):
        with pytest.raises((UnknownNameError, ValueError)) as caught:
            call(["tiny-vit-random"], [dataset], store=store, **option)
        said.append((caught.type, str(caught.value)))
    assert said[0] == said[1]


def test_adapting_takes_the_train_split_whatever_is_embedded(store):
    asked = {"splits": ["test"], "bn_modes": ["adapt"], "store": store}
    made = plan(["tiny-resnet-random"], ["textures"], **asked)
    lengths = {s: len(featstore.load_dataset("textures").split(s)) for s in ("train", "test")}
    assert made.total.images == lengths["test"]
    assert made.total.embeddings == lengths["test"] + lengths["train"]
    assert made.total.passes == 2
    assert featstore.extract(["tiny-resnet-random"], ["textures"], **asked).filled == 1


def test_room_is_what_all_that_goes_to_a_disk_leaves(store, monkeypatch):
    def enough(free):
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
        made = plan(["swav-resnet50"], ["cifar10"], store=store)
        assert {room.free for room in made.rooms} == {free}
        return {room.what: room.enough for room in made.rooms}, [r.bytes for r in made.rooms]

    all_of_it, sizes = enough(10**12)
    assert all_of_it == {"features": True, "weights": True, "datasets": True}
    assert max(sizes) < sum(sizes) - 1
    assert set(enough(sum(sizes) - 1)[0].values()) == {False}
    assert set(enough(sum(sizes))[0].values()) == {True}


def test_what_two_share_is_fetched_once(store):
    both = ["inaturalist_genus", "inaturalist_species"]
    assert datasets()[both[0]].urls == datasets()[both[1]].urls
    made = plan(["tiny-vit-random"], both, store=store)
    assert [one.what for one in made.missing] == both
    assert made.rooms[1].bytes == datasets()[both[0]].size


def test_weights_behind_a_licence_say_so(store, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    found = {one.what: one.licence for one in plan(["dinov3-b16", "dino-b16"], ["cifar10"]).missing}
    assert found["dinov3-b16"] == "dinov3-license (needs an account or a click)"
    assert "account" not in found["dino-b16"]


def test_rules_that_nobody_can_read_are_refused_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path))
    (tmp_path / "catalogue.toml").write_text(
        "[models.x]\narch = 'resnet18'\nurls = ['http://x/y.pt']\nrules = ['remove ^fc']\n"
    )
    with pytest.raises(CatalogueError, match="remove"):
        plan(["x"], ["cifar10"], store=tmp_path / "s.zarr")
