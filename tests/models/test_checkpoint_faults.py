"""What may differ in an original checkpoint, and what may not."""

from collections import OrderedDict

import pytest
import torch

from featstore.errors import BadCheckpointError


def value(number, *shape):
    return torch.full((), float(number)).expand(shape)


def refused(load_original, name, checkpoint, *naming):
    with pytest.raises(BadCheckpointError) as caught:
        load_original(name, checkpoint)
    message = str(caught.value)
    assert "\n" not in message
    for word in naming:
        assert word in message, message


# One of each layout and, where models of a layout nest or name differently, one of each of these.
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
    "insdis-resnet50",
    "simclr-v1-resnet50",
    "simclr-v2-resnet50",
    "supervised-resnet50",
]
VITS = ["moco-v3-vitb16", "mae-vitb16", "maskfeat-vitb16", "beitv2-vitb16"]


def an_encoder_tensor(name):
    """By its name in the module."""
    return "blocks.7.attn.proj.weight" if "vitb16" in name else "layer3.2.bn2.running_var"


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNETS + VITS)
def test_a_missing_tensor_is_named(name, layouts, load_original):
    checkpoint = layouts.make(name)
    lost = an_encoder_tensor(name)
    del checkpoint.tensors[checkpoint.sources[lost]]
    refused(load_original, name, checkpoint, "missing", lost)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNETS + VITS)
def test_a_tensor_that_no_rule_knows_is_named(name, layouts, load_original):
    checkpoint = layouts.make(name)
    known = checkpoint.sources[an_encoder_tensor(name)]
    checkpoint.tensors[known + "_surprise"] = checkpoint.tensors[known]
    refused(load_original, name, checkpoint, "_surprise")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swav-resnet50", "simclr-v2-resnet50", "moco-v3-vitb16"])
def test_a_tensor_of_another_shape_is_named(name, layouts, load_original):
    checkpoint = layouts.make(name)
    changed = an_encoder_tensor(name)
    checkpoint.tensors[checkpoint.sources[changed]] = value(3, 5, 2)
    refused(load_original, name, checkpoint, changed, "(5, 2)")


@pytest.mark.parametrize(
    ("name", "twin", "target"),
    [
        ("jigsaw-resnet50", "conv1.weight", "conv1.weight"),
        ("swav-resnet50", "layer1.0.conv1.weight", "layer1.0.conv1.weight"),
        ("byol-resnet50", "bn1.running_mean", "bn1.running_mean"),
        ("simclr-v2-resnet50", "layer1.0.bn1.weight", "layer1.0.bn1.weight"),
        ("maskfeat-vitb16", "backbone.norm.weight", "norm.weight"),
        ("maskfeat-vitb16", "backbone.layers.3.norm1.bias", "blocks.3.norm1.bias"),
        ("beitv2-vitb16-norm", "fc_norm.weight", "fc_norm.weight"),
        (
            "beitv2-vitb16",
            "blocks.5.attn.relative_position_bias_table",
            "blocks.5.attn.relative_position_bias_table",
        ),
    ],
)
def test_two_tensors_for_one_place_are_an_error(name, twin, target, layouts, load_original):
    checkpoint = layouts.make(name)
    assert twin not in checkpoint.tensors
    assert target in checkpoint.sources
    checkpoint.tensors[twin] = checkpoint.tensors[checkpoint.sources[target]]
    refused(load_original, name, checkpoint, target)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNETS + VITS)
def test_names_under_another_prefix_are_refused(name, layouts, load_original):
    checkpoint = layouts.make(name)
    own = {*checkpoint.sources.values(), "norm.weight", "norm.bias"}
    for key in [key for key in checkpoint.tensors if key in own]:
        checkpoint.tensors["net2." + key] = checkpoint.tensors.pop(key)
    refused(load_original, name, checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNETS + VITS)
def test_a_file_nested_one_level_deeper_is_refused(name, layouts, load_original):
    checkpoint = layouts.make(name)
    checkpoint.content = {"everything": checkpoint.content}
    refused(load_original, name, checkpoint)


@pytest.mark.parametrize("name", ["jigsaw-resnet50", "npid-pp-resnet50"])
def test_a_file_without_its_outermost_level_is_refused(name, layouts, load_original):
    checkpoint = layouts.make(name)
    checkpoint.content = checkpoint.content["classy_state_dict"]
    refused(load_original, name, checkpoint, "classy_state_dict")


def test_a_trunk_nested_under_a_further_name_is_refused(layouts, load_original):
    checkpoint = layouts.make("jigsaw-resnet50", deeper="base_model.")
    refused(load_original, "jigsaw-resnet50", checkpoint)


@pytest.mark.parametrize(
    ("name", "form", "prefix"),
    [
        ("moco-v1-resnet50", {"training": True}, "module.encoder_q."),
        ("pcl-v2-resnet50", {"training": True}, "module.encoder_q."),
        ("moco-v3-resnet50-momentum", {}, "module.momentum_encoder."),
        ("moco-v3-resnet50", {}, "module.base_encoder."),
        ("moco-v3-vitb16", {}, "module.base_encoder."),
        ("insdis-resnet50", {}, "module.encoder."),
    ],
)
def test_a_twin_does_not_stand_in_for_the_encoder(name, form, prefix, layouts, load_original):
    checkpoint = layouts.make(name, **form)
    for key in [key for key in checkpoint.tensors if key.startswith(prefix)]:
        del checkpoint.tensors[key]
    assert checkpoint.tensors
    refused(load_original, name, checkpoint)


def test_a_momentum_copy_does_not_stand_in_for_the_model(layouts, load_original):
    checkpoint = layouts.make("infomin-resnet50")
    del checkpoint.content["model"]
    refused(load_original, "infomin-resnet50", checkpoint, "model")


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNETS)
def test_counters_may_be_missing(name, layouts, load_original):
    checkpoint = layouts.make(name)
    for module_name in [n for n in checkpoint.sources if n.endswith("num_batches_tracked")]:
        del checkpoint.tensors[checkpoint.sources.pop(module_name)]
    assert len(checkpoint.sources) == 265
    checkpoint.check(load_original(name, checkpoint).module)


def test_counters_may_be_missing_beside_metadata_that_expects_them(layouts, load_original):
    checkpoint = layouts.make("supervised-resnet50")
    for name in [n for n in checkpoint.sources if n.endswith("num_batches_tracked")]:
        del checkpoint.tensors[checkpoint.sources.pop(name)]
    modules = {name.rpartition(".")[0] for name in checkpoint.sources}
    checkpoint.tensors._metadata = OrderedDict({name: {"version": 2} for name in modules})
    checkpoint.check(load_original("supervised-resnet50", checkpoint).module)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("swav-resnet50", {"training": True}),
        ("deepcluster-v2-resnet50", {"training": True}),
        ("sela-v2-resnet50", {"prototypes": [""]}),
        ("swav-resnet50", {"prototypes": ["prototypes0.", "prototypes1.", "prototypes2."]}),
        ("moco-v1-resnet50", {"training": True}),
        ("moco-v2-resnet50", {"training": True}),
        ("pcl-v1-resnet50", {"training": True}),
        ("pcl-v2-resnet50", {"training": True}),
        ("simsiam-resnet50", {"preprocessor": True}),
        ("barlowtwins-resnet50", {"preprocessor": True}),
        ("maskfeat-vitb16", {"preprocessor": True}),
        ("mae-vitb16", {"decoder": True}),
        ("milan-vitb16", {"training": False}),
    ],
)
def test_other_forms_of_a_file_load_as_well(name, form, layouts, load_original):
    checkpoint = layouts.make(name, **form)
    checkpoint.check(load_original(name, checkpoint).module)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form", "own", "twin"),
    [
        ("moco-v1-resnet50", {"training": True}, "module.encoder_q.", "module.encoder_k."),
        ("moco-v2-resnet50", {"training": True}, "module.encoder_q.", "module.encoder_k."),
        ("moco-v3-resnet50", {}, "module.base_encoder.", "module.momentum_encoder."),
        ("moco-v3-resnet50-momentum", {}, "module.momentum_encoder.", "module.base_encoder."),
        ("moco-v3-vitb16", {}, "module.base_encoder.", "module.momentum_encoder."),
        ("moco-v3-vitb16-momentum", {}, "module.momentum_encoder.", "module.base_encoder."),
        ("infomin-resnet50", {}, "module.encoder.", None),
    ],
)
def test_weights_and_statistics_are_of_the_encoder_and_not_of_its_twin(
    name, form, own, twin, layouts, load_original
):
    checkpoint = layouts.make(name, **form)
    found = load_original(name, checkpoint).module.state_dict()
    pair = ("layer2.1.conv2.weight", "layer2.1.bn2.running_mean")
    for tensor in ("blocks.4.attn.qkv.weight",) if "vitb16" in name else pair:
        tensors = checkpoint.tensors
        other = tensors[twin + tensor] if twin else checkpoint.content["model_ema"][own + tensor]
        assert torch.equal(found[tensor], tensors[own + tensor])
        assert not torch.equal(found[tensor], other)
