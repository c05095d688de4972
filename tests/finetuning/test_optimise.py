"""Rates of layers and stochastic depth: against the published numbers and against timm."""

import copy

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.optim import param_groups_layer_decay
from torch import nn

from featstore.finetuning import get
from featstore.finetuning.net import Net, make_head
from featstore.finetuning.optimise import (
    drop_paths,
    is_transformer,
    layer_scales,
    make_optimiser,
)


@pytest.fixture(scope="module")
def vit_base():
    with torch.device("meta"):
        return timm.create_model("vit_base_patch16_224", num_classes=0)


def test_layer_wise_rates_are_the_published(vit_base):
    scales = layer_scales(vit_base, 0.65)
    assert set(scales) == {name for name, _ in vit_base.named_parameters()}
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight"):
        assert scales[name] == pytest.approx(0.003697, abs=5e-7)
    assert scales["blocks.0.attn.qkv.weight"] == pytest.approx(0.005688, abs=5e-7)
    for block in range(12):
        assert scales[f"blocks.{block}.norm1.bias"] == pytest.approx(0.65 ** (12 - block))
    assert scales["blocks.11.mlp.fc2.bias"] == scales["norm.weight"] == pytest.approx(0.65)


def test_layer_wise_rates_are_timms_where_it_sees_the_head(vit_base):
    with torch.device("meta"):
        whole = timm.create_model("vit_base_patch16_224", num_classes=10)
    theirs = param_groups_layer_decay(whole, weight_decay=0, layer_decay=0.65)
    rate = {id(p): group["lr_scale"] for group in theirs for p in group["params"]}
    scales = layer_scales(vit_base, 0.65)
    named = dict(whole.named_parameters())
    assert scales == {name: pytest.approx(rate[id(named[name])]) for name in scales}
    assert rate[id(named["head.weight"])] == 1


def test_a_norm_after_the_pooling_has_the_rate_of_the_last_block():
    with torch.device("meta"):
        module = timm.create_model("vit_base_patch16_224", num_classes=0, global_pool="avg")
    scales = layer_scales(module, 0.65)
    assert scales["fc_norm.weight"] == scales["blocks.11.norm1.weight"] == pytest.approx(0.65)


@pytest.mark.parametrize(("percent", "backbone", "head"), [(10, 0.01, 0.2), (1, 0.02, 5.0)])
def test_head_and_layers_have_their_rates(vit_base, percent, backbone, head):
    protocol = get(f"finetune{percent}-marks-swav")
    layer = nn.Linear(768, 10)
    (candidate,) = protocol.candidates()
    optimiser = make_optimiser(vit_base, layer, candidate, protocol)
    rate = {id(p): g["peak"] for g in optimiser.param_groups for p in g["params"]}
    assert len(rate) == len([*vit_base.parameters(), *layer.parameters()])
    assert rate[id(layer.weight)] == rate[id(layer.bias)] == head
    assert rate[id(vit_base.cls_token)] == pytest.approx(backbone * 0.003697, abs=5e-8)
    assert rate[id(vit_base.norm.bias)] == pytest.approx(backbone * 0.65)


@pytest.mark.parametrize("name", ["linear-marks-mlp-bn", "finetune1-marks-swav-bn+head=mlp"])
def test_all_layers_of_a_head_have_its_rate(vit_base, name):
    protocol = get(name)
    net = Net(copy.deepcopy(vit_base), make_head(768, 10, protocol, 0), protocol,
              site="", data_config={"mean": [0] * 3, "std": [1] * 3})  # fmt: skip
    (candidate,) = protocol.candidates()
    groups = make_optimiser(net.backbone, net.head, candidate, protocol).param_groups
    rate = {id(p): group["peak"] for group in groups for p in group["params"]}
    assert len(list(net.head.parameters())) == 8
    assert {rate[id(p)] for p in net.head.parameters()} == {candidate.lr_head}
    assert len(rate) == sum(p.requires_grad for p in net.parameters())
    assert candidate.lr_head == (5 if protocol.trained else 0.4)


def test_a_resnet_has_one_rate_and_is_no_transformer():
    with torch.device("meta"):
        resnet = timm.create_model("resnet50", num_classes=0)
    assert not is_transformer(resnet)
    protocol = get("finetune-marks")
    (candidate,) = protocol.candidates()
    groups = make_optimiser(resnet, nn.Linear(2, 2), candidate, protocol).param_groups
    assert [group["peak"] for group in groups] == [0.1]


@pytest.mark.parametrize(
    "arch", ["vit_base_patch16_224", "beitv2_base_patch16_224", "eva02_base_patch14_224"]
)
def test_stochastic_depth_is_as_timm_makes_it(arch):
    with torch.device("meta"):
        plain = timm.create_model(arch, num_classes=0)
        theirs = timm.create_model(arch, num_classes=0, drop_path_rate=0.2)
    assert is_transformer(plain)
    drop_paths(plain, 0.2)

    def rates(module):
        return {n: m.drop_prob for n, m in module.named_modules() if isinstance(m, DropPath)}

    assert rates(plain) == pytest.approx(rates(theirs))
    assert max(rates(plain).values()) == pytest.approx(0.2)
