"""Models by name: from the catalogue, timm, a file, or drawn at random, and what each is called."""

import json
import time

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.data import resolve_model_data_config

from featstore.errors import BadCheckpointError, CatalogueError, UnknownNameError
from featstore.models import DATA, catalogue, create_backbone, load_model
from featstore.models.blueprint import described
from featstore.models.checkpoints import weights_sha256

TINY = [name for name, entry in catalogue().items() if "tiny" in entry.sets]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and an empty cache, at once instead of after 45 seconds of retries."""
    # These variables are read when huggingface_hub is imported, long before any test.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "hub"


@pytest.mark.parametrize("arch", ["tiny-resnet", "tiny-vit", "test_efficientnet"])
def test_a_seed_draws_the_same_bytes_and_another_draws_others(arch):
    first, again, other = (weights_sha256(create_backbone(arch, seed=s)) for s in (5, 5, 6))
    assert first == again
    assert first != other


def test_drawing_by_a_seed_leaves_the_global_generators_alone(monkeypatch):
    def refuse(*args):
        raise AssertionError("the generators of the GPUs were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    torch.random.default_generator.manual_seed(11)
    before = torch.get_rng_state()
    load_model("timm:test_vit", weights="random", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1000)  # and its state plays no part in what is drawn
    again = create_backbone("test_vit", seed=3)
    assert weights_sha256(again) == load_model("timm:test_vit~random3").weights


def test_random_weights_are_part_of_the_name():
    model = load_model("timm:resnet18", weights="random")
    assert model.name == "timm:resnet18~random0"
    assert model.arch == "resnet18"
    assert model.info == {
        "backbone": "resnet18", "family": "random", "paradigm": "random", "method": "random",
        "teacher": "", "stage": "random", "lineage": "timm:resnet18 random0", "pretraining": [],
    }  # fmt: skip
    assert model.weights == weights_sha256(create_backbone("resnet18", seed=0))
    assert not model.module.training


@pytest.mark.parametrize("arch", timm.list_pretrained("test_*"))
def test_a_name_with_the_tag_of_its_weights_can_be_had_at_random(arch):
    model = load_model(f"timm:{arch}", weights="random")
    assert (model.name, model.arch) == (f"timm:{arch}~random0", arch)


def test_a_name_that_random_weights_made_leads_back_to_them():
    asked = load_model("timm:test_resnet@avg", weights="random", seed=3)
    named = load_model(asked.name)
    assert asked.name == named.name == "timm:test_resnet~random3"  # a site plays no part
    assert asked.weights == named.weights
    assert asked.info == named.info
    assert load_model(asked.name, weights="random", seed=9).weights == asked.weights


def test_random_weights_and_a_variant_of_the_users_are_both_kept():
    model = load_model("timm:test_resnet~fp32", weights="random", seed=3)
    assert model.name == "timm:test_resnet~random3-fp32"
    again = load_model(model.name)
    assert (again.name, again.weights) == (model.name, model.weights)


def test_a_trained_model_of_the_catalogue_can_be_had_at_random():
    model = load_model("tiny-vit-mae", weights="random", seed=1)
    assert model.name == "tiny-vit-mae~random1"
    assert model.info["method"] == "random"
    assert model.info["pretraining"] == []
    assert model.weights == weights_sha256(create_backbone("tiny-vit", seed=1))


@pytest.mark.parametrize("name", TINY)
def test_an_entry_of_the_catalogue_loads_with_its_description(name):
    entry = catalogue()[name]
    if not entry.weights.startswith("random:"):
        assert (DATA / entry.weights).is_file()
    model = load_model(name)
    assert (model.name, model.arch) == (name, entry.arch)
    assert model.info["method"] == entry.method
    assert model.info["lineage"] == entry.lineage
    assert model.bn_free == (entry.backbone == "vit")
    assert not model.module.training
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model.module(pixels).isfinite().all()
    assert load_model(name).weights == model.weights


def test_no_two_models_of_the_catalogue_have_the_same_weights():
    assert len({load_model(name).weights for name in TINY}) == len(TINY)


def test_the_input_of_a_model_is_what_timm_says():
    model = load_model("timm:test_efficientnet", weights="random")
    plain = timm.create_model("test_efficientnet")
    assert model.data_config == resolve_model_data_config(plain)


def test_weights_may_be_given_as_a_file(tmp_path):
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "w.safetensors")
    model = load_model("timm:test_vit", weights=str(tmp_path / "w.safetensors"))
    file = load_model(f"file:{tmp_path}/w.safetensors#arch=test_vit@cls")
    assert model.weights == file.weights
    assert model.name == "timm:test_vit~w"  # it is not what the bare name means
    assert file.name == f"file:{tmp_path}/w.safetensors#arch=test_vit"
    assert file.info["lineage"] == file.name
    assert file.info["backbone"] == "test_vit"


def test_files_that_differ_in_their_numbers_alone_are_of_one_run(tmp_path):
    names = ("run1/epoch9", "run1/epoch10", "run2/epoch9", "run1/last")
    lineages = {}
    for number, name in enumerate(names):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file(create_backbone("test_vit", seed=number).state_dict(), path)
        lineages[name] = load_model(f"file:{path}#arch=test_vit").info["lineage"]
    assert lineages["run1/epoch9"] == lineages["run1/epoch10"]
    assert len(set(lineages.values())) == 3


def test_a_file_may_start_with_the_home_folder(tmp_path, monkeypatch):
    save_file(create_backbone("tiny-vit", seed=4).state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = weights_sha256(create_backbone("tiny-vit", seed=4))
    assert load_model("file:~/w.safetensors#arch=tiny-vit").weights == expected


@pytest.mark.parametrize("weights", ["random:3", "hub", "Random"])
def test_weights_that_are_no_word_of_ours_are_a_file_and_never_something_else(
    weights, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("timm:test_vit", "tiny-vit-mae"):
        with pytest.raises(BadCheckpointError, match=f"no weights at {weights}"):
            load_model(name, weights=weights)
    with pytest.raises(BadCheckpointError, match=f"no weights at {weights}"):
        load_model(f"file:{weights}#arch=test_vit")


def test_without_network_and_cache_it_says_what_to_do_and_at_once(offline):
    begun = time.perf_counter()
    with pytest.raises(BadCheckpointError) as caught:
        load_model("timm:test_vit")
    assert time.perf_counter() - begun < 10
    assert str(caught.value).startswith("no pretrained weights for timm:test_vit (")
    assert "Give a file with --weights PATH, or ask for --weights random by name" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["resnet50-a1", "dinov3-convnext-tiny", "ijepa-h14"])
def test_told_to_be_offline_it_asks_no_network_and_then_forgets_that(name, monkeypatch, tmp_path):
    monkeypatch.setenv("FEATSTORE_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    begun = time.perf_counter()
    with pytest.raises(BadCheckpointError, match="no pretrained weights for timm:"):
        load_model(name)
    assert time.perf_counter() - begun < 10
    assert not constants.HF_HUB_OFFLINE


def toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes the user's own catalogue, of one model."""
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path))

    def write(**fields):
        lines = [f"{field} = {toml(value)}" for field, value in fields.items()]
        text = "\n".join(["[models.mine]", *lines])
        (tmp_path / "catalogue.toml").write_text(text + "\n")
        return tmp_path

    return write


def test_weights_of_a_users_entry_lie_beside_its_catalogue(own, tmp_path, monkeypatch):
    folder = own(arch="tiny-vit", weights="runs/w.safetensors", family="contrastive")
    (folder / "runs").mkdir()
    save_file(create_backbone("tiny-vit", seed=4).state_dict(), folder / "runs" / "w.safetensors")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    model = load_model("mine@avg")
    assert model.weights == weights_sha256(create_backbone("tiny-vit", seed=4))
    assert (model.name, model.info["family"]) == ("mine", "contrastive")


def test_a_users_entry_may_have_a_nest_and_rules(own):
    folder = own(
        arch="test_vit", weights="w.pt", nest="teacher",
        rules=[r"keep ^backbone\.", r"sub ^backbone\. ->"],
    )  # fmt: skip
    body = create_backbone("test_vit", seed=4).state_dict()
    teacher = {f"backbone.{name}": t for name, t in body.items()} | {"head.w": torch.ones(3)}
    torch.save({"student": {}, "teacher": teacher}, folder / "w.pt")
    expected = weights_sha256(create_backbone("test_vit", seed=4))
    assert load_model("mine").weights == expected
    # With --weights: in the authors' form, in the module's, and with its classifier.
    torch.save({"teacher": teacher}, folder / "nested.pt")
    torch.save({"state_dict": body}, folder / "plain.pt")
    save_file(teacher, folder / "converted.safetensors")
    save_file(body | {"head.weight": torch.ones(3, 64)}, folder / "classifier.safetensors")
    for file in ("nested.pt", "plain.pt", "converted.safetensors", "classifier.safetensors"):
        model = load_model("mine", weights=str(folder / file))
        assert model.weights == expected
        assert model.name == f"mine~{file.partition('.')[0]}"
    save_file(body | {"neck.weight": torch.ones(3)}, folder / "neck.safetensors")
    with pytest.raises(BadCheckpointError, match=r"none of the weights of mine; there is "):
        load_model("mine", weights=str(folder / "neck.safetensors"))


@pytest.mark.parametrize("classifier", [True, False])
def test_byol_converted_by_others_is_taken_as_a_users_file(classifier, tmp_path):
    with torch.device("meta"):
        shapes = timm.create_model("resnet50").state_dict()
    state = {
        name: torch.full((), float(i)).expand(one.shape).to(one.dtype)
        for i, (name, one) in enumerate(shapes.items())
        if classifier or not name.startswith("fc.")
    }
    torch.save({"state_dict": state}, tmp_path / "converted.pth")
    model = load_model("byol-deepmind-resnet50", weights=str(tmp_path / "converted.pth"))
    found = model.module.state_dict()
    assert len(found) == 318
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())


BODY = create_backbone("test_resnet", seed=4).state_dict()
HEAD = {"fc.weight": torch.ones(9, 64), "fc.bias": torch.ones(9)}


def below(prefix, state=BODY | HEAD):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("state", "where"),
    [
        (below("encoder."), "below 'encoder.'"),
        (below("module.net.") | {"module.queue": torch.ones(3)}, "below 'module.net.'"),
        (below("encoder_q.") | below("encoder_k."), "below 'encoder_q.'"),
        (BODY | HEAD | {"fc_2.weight": torch.ones(1)}, "and others"),
        (below("module.") | {"module.neck.0.weight": torch.ones(1)}, "below 'module.'"),
    ],
)
def test_the_rules_that_names_with_a_prefix_need_are_told_and_are_right(own, state, where):
    folder = own(arch="test_resnet", weights="w.pt")
    torch.save(state, folder / "w.pt")
    with pytest.raises(BadCheckpointError, match="do not fit ResNet") as caught:
        load_model(f"file:{folder}/w.pt#arch=test_resnet")
    told, _, rules = str(caught.value).partition(": rules = ")
    counted = [name for name in BODY if not name.endswith("num_batches_tracked")]
    assert f"names: {len(counted)} of its {len(counted)} weights are there" in told
    assert where in told
    assert told.endswith(f"Write in {folder}/catalogue.toml, at [models.NAME]")
    with pytest.raises(BadCheckpointError, match=r"at \[models\.mine\]: rules = "):
        load_model("mine")
    own(arch="test_resnet", weights="w.pt", rules=json.loads(rules))
    assert load_model("mine").weights == weights_sha256(create_backbone("test_resnet", seed=4))


@pytest.mark.parametrize(("n", "arch"), [(None, "test_vit"), (20, "test_resnet")])
def test_no_rules_are_told_for_another_architecture(n, arch, tmp_path):
    torch.save(below("encoder.", dict([*BODY.items()][:n])), tmp_path / "w.pt")
    with pytest.raises(BadCheckpointError, match="Check the architecture after #arch=$"):
        load_model(f"file:{tmp_path}/w.pt#arch={arch}")


@pytest.mark.parametrize("seed", ["", "x", "-1", "1.5"])
def test_random_weights_need_a_number(own, seed):
    own(arch="test_vit", weights=f"random:{seed}")
    with pytest.raises(CatalogueError, match=f"mine: weights = 'random:{seed}' is not random:SEED"):
        load_model("mine")


@pytest.mark.parametrize(("site", "width"), [("", 64), ("@cls+avg", 128)])
def test_what_is_known_of_a_name_without_entry_can_be_told(site, width, offline, tmp_path):
    found = described(f"timm:test_vit{site}")
    cfg = timm.get_pretrained_cfg("test_vit")
    assert found["name"] == f"timm:test_vit{site}"
    assert (found["width"], found["bn_free"]) == (width, True)
    body = timm.create_model("test_vit", num_classes=0)
    assert found["parameters"] == sum(one.numel() for one in body.parameters())
    assert (found["input_size"], found["mean"]) == (cfg.input_size, cfg.mean)
    assert (found["weights"], found["status"]) == ("timm/test_vit.r160_in1k", "fetchable")
    snapshot = offline / "models--timm--test_vit.r160_in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    (snapshot / "model.safetensors").touch()
    assert described("timm:test_vit")["status"] == "ready"
    elsewhere = described("timm:gcvit_xxtiny.in1k")  # not on the hub
    assert elsewhere["weights"] == timm.get_pretrained_cfg("gcvit_xxtiny.in1k").url
    assert elsewhere["status"] == "fetchable"
    file = tmp_path / "torch" / "hub" / "checkpoints" / elsewhere["weights"].rpartition("/")[2]
    file.parent.mkdir(parents=True)
    file.touch()
    assert described("timm:gcvit_xxtiny.in1k")["status"] == "ready"
    assert described("timm:vit_giant_patch14_224")["status"] == "random only"
    file = f"file:{tmp_path}/w.pt#arch=test_vit{site}"
    assert (described(file)["width"], described(file)["status"]) == (width, "absent")
    (tmp_path / "w.pt").touch()
    assert described(file)["status"] == "ready"
    with pytest.raises(UnknownNameError, match="Did you mean test_vit"):
        described("timm:test_vitt")


def test_an_entry_says_whence_its_weights_come(own, tmp_path):
    known = catalogue()
    assert known["dino-resnet50"].whence == known["dino-resnet50"].urls[0]
    hub = next(entry for entry in known.values() if entry.weights == "hub")
    assert hub.whence == f"timm's hub, {hub.arch}"
    own(arch="test_vit", weights="runs/w.pt")
    assert catalogue()["mine"].whence == f"your own file, {tmp_path}/runs/w.pt"
    own(arch="test_vit", file="w.pt")
    assert catalogue()["mine"].whence == "your own file, w.pt"
    own(arch="test_vit")
    assert catalogue()["mine"].whence == "nowhere: its entry names no weights"


def test_what_no_rule_names_is_refused(own):
    folder = own(arch="test_vit", weights="w.pt", rules=[r"sub ^net\. ->"])
    body = create_backbone("test_vit", seed=4).state_dict()
    torch.save({f"net.{n}": t for n, t in body.items()} | {"head.weight": torch.ones(1)},
               folder / "w.pt")  # fmt: skip
    with pytest.raises(BadCheckpointError) as caught:
        load_model("mine")
    assert "(1 unexpected: head.weight). Check the names: " in str(caught.value)


def test_a_users_entry_says_its_input_and_its_options(own):
    own(
        arch="test_vit", weights="random:3", options={"global_pool": "avg"}, image_size=96,
        mean=[0.1, 0.2, 0.3], interpolation="bilinear",
    )  # fmt: skip
    model = load_model("mine")
    plain = load_model("timm:test_vit~random3")
    stated = {"input_size": (3, 96, 96), "mean": (0.1, 0.2, 0.3), "interpolation": "bilinear"}
    assert model.data_config == plain.data_config | stated
    assert (model.module.global_pool, plain.module.global_pool) == ("avg", "token")


def test_an_option_that_the_architecture_has_not_is_refused(own):
    own(arch="test_vit", weights="random:3", options={"colour": "red"})
    with pytest.raises(CatalogueError, match="mine: test_vit has no such option .*colour"):
        load_model("mine")


def test_a_users_entry_may_be_code(own, tmp_path, monkeypatch):
    (tmp_path / "my_factory.py").write_text(
        "from featstore import create_backbone\n\n\n"
        "def make():\n    return create_backbone('tiny-vit', seed=4)\n"
    )
    monkeypatch.chdir(tmp_path)
    own(arch="mine", weights="py:my_factory:make")
    assert load_model("mine").weights == weights_sha256(create_backbone("tiny-vit", seed=4))
    for name in ("mine", "py:my_factory:make"):
        with pytest.raises(BadCheckpointError, match="cannot be had at random"):
            load_model(name, weights="random")


def test_two_training_runs_of_the_same_weights_are_told(own, caplog):
    folder = own(arch="tiny-vit")
    state = create_backbone("tiny-vit", seed=4).state_dict()
    text = "".join(
        f'[models.{name}]\narch = "tiny-vit"\nby_hand = "ask"\nfile = "{name}.safetensors"\n'
        f'lineage = "{name[0]}"\n'
        for name in ("a1", "a2", "b")
    )
    (folder / "catalogue.toml").write_text(text)
    (folder / "weights").mkdir()
    for name in ("a1", "a2", "b"):
        save_file(state, folder / "weights" / f"{name}.safetensors")

    def told(name):
        caplog.clear()
        load_model(name)
        return [r.getMessage() for r in caplog.records if "very weights" in r.getMessage()]

    assert told("a1") == told("a2") == []  # of one run
    assert [line.partition(":")[0] for line in told("b")] == [
        "b has the very weights of a1", "b has the very weights of a2",
    ]  # fmt: skip
    assert len(told("a2")) == 1
    (folder / "weights.json").write_text("{cut o")
    assert told("b") == []  # written anew
    assert len(told("a1")) == 1


def test_an_architecture_of_which_nobody_published_weights_says_so(offline):
    bare = next(
        name
        for name in timm.list_models("resnet*")
        if name not in timm.list_models(pretrained=True)
    )
    with pytest.raises(BadCheckpointError, match=f"no pretrained weights for timm:{bare} "):
        load_model(f"timm:{bare}")


def test_pretrained_weights_come_through_timms_hub_code_and_its_cache(offline):
    torch.manual_seed(21)
    published = timm.create_model("test_vit")  # with its classifier, as it lies on the hub
    repository = published.default_cfg["hf_hub_id"].replace("/", "--")
    cached = offline / f"models--{repository}"
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    save_file(published.state_dict(), cached / "snapshots" / "abc" / "model.safetensors")

    published.reset_classifier(0)
    for name in ("timm:test_vit", "timm:test_vit.r160_in1k"):
        model = load_model(name)
        assert model.name == name
        assert model.weights == weights_sha256(published)
        assert model.info["backbone"] == "test_vit"
        assert model.info["stage"] == ""


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("tiny-resnet-simcrl", "tiny-resnet-simclr"),
        ("resnet50", "timm:resnet50"),
        ("timm:resnet5", "resnet50"),
        ("timm:vit_base_patch16_244", "vit_base_patch16_224"),
        ("timm:resnet18.a1_in2k", "resnet18.a1_in1k"),
        ("file:w.pt#arch=resnet17", "resnet18"),
        ("file:w.pt#arch=tiny-resnets", "tiny-resnet"),
    ],
)
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_an_unknown_model_is_refused_with_those_that_come_near(name, near, weights):
    with pytest.raises(UnknownNameError) as caught:
        load_model(name, weights=weights)
    suggestions = str(caught.value).partition("Did you mean ")[2].partition("?")[0]
    assert near in suggestions.split(" or ")


@pytest.mark.parametrize("name", ["", "qqqqqq", "timm:", "file:w.pt#arch="])
def test_a_name_like_no_other_is_refused_and_the_ways_to_name_one_told(name):
    with pytest.raises(UnknownNameError, match="lists"):
        load_model(name)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(UnknownNameError, match="unknown architecture 'resnet17'"):
        create_backbone("resnet17")
    with pytest.raises(UnknownNameError, match="unknown weights 'resnet18.nobody'"):
        create_backbone("resnet18.nobody", seed=0)


def test_a_file_that_is_no_weights_is_not_what_the_right_one_is_held_to(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path))
    (tmp_path / "catalogue.toml").write_text('[models.mine]\narch = "test_vit"\nfile = "w.pth"\n')
    (tmp_path / "weights").mkdir()
    place = tmp_path / "weights" / "w.pth"
    wrong = create_backbone("test_resnet", seed=1).state_dict()
    right = create_backbone("test_vit", seed=1).state_dict()
    for content in (b"<html>Sign in</html>", b"\x80\x02junk", wrong):
        if isinstance(content, bytes):
            place.write_bytes(content)
        else:
            torch.save(content, place)
        with pytest.raises(BadCheckpointError, match=r"w\.pth"):
            load_model("mine")
    torch.save(right, place)
    assert torch.equal(load_model("mine").module.state_dict()["cls_token"], right["cls_token"])
    torch.save(create_backbone("test_vit", seed=2).state_dict(), place)  # proven: now it is held to
    with pytest.raises(BadCheckpointError, match="not the file that it should be"):
        load_model("mine")
