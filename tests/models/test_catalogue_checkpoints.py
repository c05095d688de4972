"""Files as their authors wrote them, made up key for key, load under their catalogue names."""

import pytest
import timm
import torch

from featstore.errors import BadCheckpointError
from featstore.models import catalogue, embed, load_model
from featstore.models.convert import convert

MARKS = [
    "jigsaw-resnet50",
    "rotnet-resnet50",
    "npid-resnet50",
    "sela-v2-resnet50",
    "npid-pp-resnet50",
    "pirl-resnet50",
    "clusterfit-resnet50",
    "deepcluster-v2-resnet50",
    "swav-resnet50",
    "simclr-resnet50",
    "moco-v2-resnet50",
    "simsiam-resnet50",
    "byol-resnet50",
    "dino-resnet50",
    "barlowtwins-resnet50",
    "densecl-resnet50",
    "moco-v3-resnet50-momentum",
    "dino-vitb16",
    "ibot-vitb16",
    "moco-v3-vitb16-momentum",
    "mae-vitb16",
    "maskfeat-vitb16",
    "beitv2-vitb16",
    "milan-vitb16",
    "eva-vitb16",
    "pixmim-vitb16",
]
BESIDE = ["moco-v3-resnet50", "moco-v3-vitb16", "beitv2-vitb16-norm", "beitv2-vitb16-cls"]
ERICSSON = [
    "insdis-resnet50",
    "moco-v1-resnet50",
    "pcl-v1-resnet50",
    "pirl-pycontrast-resnet50",
    "pcl-v2-resnet50",
    "simclr-v1-resnet50",
    "simclr-v2-resnet50",
    "infomin-resnet50",
    "byol-deepmind-resnet50",
    "supervised-resnet50",
]
EVERY = [*MARKS, *BESIDE, *ERICSSON]
SHARED = ["moco-v2-resnet50", "sela-v2-resnet50", "deepcluster-v2-resnet50", "swav-resnet50"]

CONVERTED = [
    "npid-resnet50",
    "simsiam-resnet50",
    "barlowtwins-resnet50",
    "maskfeat-vitb16",
    "eva-vitb16",
    "pixmim-vitb16",
    "milan-vitb16",
    "byol-deepmind-resnet50",
]


@pytest.mark.parametrize("kind", ["resnet50", "vitb16"])
def test_the_shapes_written_down_are_those_of_the_architecture(kind, layouts):
    arch = {"resnet50": "resnet50", "vitb16": "vit_base_patch16_224"}[kind]
    with torch.device("meta"):
        module = timm.create_model(arch, num_classes=0)
    found = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert found == layouts.ENCODERS[kind]()


@pytest.mark.parametrize(
    ("name", "form", "n_tensors"),
    [
        ("jigsaw-resnet50", {}, 318),
        ("moco-v1-resnet50", {"training": True}, 2 * 320 + 2),
        ("moco-v2-resnet50", {"training": True}, 2 * 322 + 2),
        ("moco-v3-resnet50", {}, 663),
        ("moco-v3-vitb16", {}, 342),
        ("dino-vitb16", {}, 150),
        ("mae-vitb16", {"decoder": True}, 254),
        ("milan-vitb16", {}, 270),
        ("beitv2-vitb16", {}, 220),
        ("simclr-v2-resnet50", {}, 320),
    ],
)
def test_a_made_up_file_has_as_many_tensors_as_the_real_one(name, form, n_tensors, layouts):
    assert len(layouts.make(name, **form).tensors) == n_tensors


def test_every_model_of_both_studies_has_its_layout(layouts):
    assert len(MARKS) == 26
    assert len(ERICSSON + SHARED) == 14
    assert {*EVERY} == layouts.LAYOUTS.keys()
    sets = {name: entry.sets for name, entry in catalogue().items()}
    assert {name for name in sets if "marks2024" in sets[name]} == {*MARKS}
    assert {name for name in sets if "ericsson2021" in sets[name]} == {*ERICSSON, *SHARED}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_tensor_comes_from_its_own_key_and_the_whole_embeds_as_its_reference(
    name, layouts, load_original
):
    checkpoint = layouts.make(name, random=True)
    values = [float(torch.as_tensor(t).flatten()[0]) for t in checkpoint.tensors.values()]
    assert len({*values}) == len(values)  # so that none passes for another
    model, entry = load_original(name, checkpoint), catalogue()[name]
    checkpoint.check(model.module)
    shape = (1, 3, 224, 224) if "vitb16" in name else (2, 3, 64, 64)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = embed(model.module, pixels, [""])[""]
        expected = layouts.embedding(name, checkpoint, pixels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.shape[1] == entry.width == (768 if "vit" in name else 2048)
    assert model.data_config["input_size"] == (3, entry.image_size, entry.image_size)
    for field in ("mean", "std"):
        assert model.data_config[field] == tuple(getattr(entry, field))


@pytest.mark.parametrize("name", CONVERTED)
def test_a_file_with_more_than_tensors_is_refused_until_converted(name, layouts, new_home):
    path = layouts.make(name).save(new_home / "weights" / catalogue()[name].file)
    with pytest.raises(BadCheckpointError, match="featstore convert") as caught:
        load_model(name)
    path.unlink()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_what_a_training_script_wrote_loads_once_it_is_converted(layouts, new_home):
    name = "beitv2-vitb16"
    checkpoint = layouts.make(name, training=True)
    raw = checkpoint.save(new_home / "checkpoint-299.pth")
    with pytest.raises(BadCheckpointError, match="featstore convert") as caught:
        load_model(name, weights=str(raw))
    assert "Namespace" in str(caught.value)
    path = convert(raw, new_home / "converted.safetensors").path
    checkpoint.check(load_model(name, weights=str(path)).module)
    path.unlink()  # 400 MB


def test_deepmind_s_byol_loads_as_others_converted_it(layouts, new_home):
    checkpoint = layouts.make("byol-deepmind-resnet50", converted=True)
    assert len(checkpoint.tensors) == 320
    path = checkpoint.save(new_home / "byol.pth")
    checkpoint.check(load_model("byol-deepmind-resnet50", weights=str(path)).module)
