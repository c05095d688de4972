"""Files as their authors wrote them, made up key for key, load under their catalogue names."""

import pytest
import timm
import torch
import torchvision

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

# One of each layout, however many models share it; the ViTs apart, since they take longer.
RESNETS = [
    "jigsaw-resnet50",
    "npid-resnet50",
    "swav-resnet50",
    "moco-v2-resnet50",
    "simsiam-resnet50",
    "byol-resnet50",
    "dino-resnet50",
    "densecl-resnet50",
    "moco-v3-resnet50-momentum",
    "infomin-resnet50",
    "simclr-v1-resnet50",
    "simclr-v2-resnet50",
    "supervised-resnet50",
    "byol-deepmind-resnet50",
]
VITS = ["ibot-vitb16", "moco-v3-vitb16-momentum", "mae-vitb16"]


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
    assert {*MARKS, *BESIDE, *ERICSSON} == layouts.LAYOUTS.keys()
    sets = {name: entry.sets for name, entry in catalogue().items()}
    assert {name for name in sets if "marks2024" in sets[name]} == {*MARKS}
    assert {name for name in sets if "ericsson2021" in sets[name]} == {*ERICSSON, *SHARED}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MARKS, *BESIDE, *ERICSSON])
def test_every_tensor_comes_from_its_own_key_and_the_input_is_the_authors(
    name, layouts, load_original
):
    checkpoint = layouts.make(name)
    values = [float(torch.as_tensor(t).flatten()[0]) for t in checkpoint.tensors.values()]
    assert len({*values}) == len(values)  # so that none passes for another
    model = load_original(name, checkpoint)
    checkpoint.check(model.module)
    assert catalogue()[name].width == model.module.num_features == (768 if "vit" in name else 2048)
    # The two that were converted from TensorFlow see images as they are.
    raw = name in ("simclr-v1-resnet50", "simclr-v2-resnet50")
    assert model.data_config["mean"] == ((0.0, 0.0, 0.0) if raw else (0.485, 0.456, 0.406))
    assert model.data_config["std"] == ((1.0, 1.0, 1.0) if raw else (0.229, 0.224, 0.225))
    assert model.data_config["input_size"] == (3, 224, 224)


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


def random_values(shapes):
    """Values in a range where a network of them neither dies nor explodes."""
    draw = torch.Generator().manual_seed(2)
    values = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            values[name] = torch.tensor(7)
        elif len(shape) > 1:
            fan_in = max(1, torch.Size(shape[1:]).numel())
            values[name] = torch.randn(shape, generator=draw) * fan_in**-0.5
        else:
            values[name] = 0.5 + 0.5 * torch.rand(shape, generator=draw)
    return values


def torchvision_name(name):
    """Of a tensor of the vision transformer, of which timm and the authors share the names."""
    name = name.replace("patch_embed.proj", "conv_proj").replace("cls_token", "class_token")
    name = name.replace("pos_embed", "encoder.pos_embedding")
    name = name.replace("attn.proj", "self_attention.out_proj")
    name = name.replace("attn.qkv.", "self_attention.in_proj_").replace("mlp.fc1", "mlp.0")
    name = name.replace("mlp.fc2", "mlp.3").replace("norm1", "ln_1").replace("norm2", "ln_2")
    name = name.replace("blocks.", "encoder.layers.encoder_layer_")
    return f"encoder.ln.{name.removeprefix('norm.')}" if name.startswith("norm.") else name


@pytest.fixture(scope="module")
def reference(layouts):
    """For each architecture: random weights, pixels, and torchvision's embedding of these."""

    def made(kind, module, side, rename):
        body = random_values(layouts.ENCODERS[kind]())
        renamed = {rename(name): tensor for name, tensor in body.items()}
        module.load_state_dict(renamed, strict=True, assign=True)
        pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            return body, pixels, module.eval()(pixels)

    with torch.device("meta"):
        resnet, vit = torchvision.models.resnet50(), torchvision.models.vit_b_16()
    resnet.fc, vit.heads = torch.nn.Identity(), torch.nn.Identity()
    return {
        "resnet50": made("resnet50", resnet, 64, str),
        "vitb16": made("vitb16", vit, 224, torchvision_name),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RESNETS, *VITS])
def test_a_loaded_model_embeds_as_torchvisions_with_the_same_weights(
    name, layouts, reference, load_original
):
    body, pixels, expected = reference["vitb16" if "vitb16" in name else "resnet50"]
    module = load_original(name, layouts.make(name, body)).module
    with torch.inference_mode():
        found = embed(module, pixels, [""])[""]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
