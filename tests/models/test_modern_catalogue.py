"""The catalogue's models whose weights timm knows where to find: each can be built, as it says."""

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg

from featstore.models import catalogue, embed, load_model
from featstore.models.load import data_config_of

# Of each model: its weights' name in timm, features, and pixels along a side of its input.
MODERN = {
    "resnet50-tv": ("resnet50.tv_in1k", 2048, 224),
    "resnet50-tv2": ("resnet50.tv2_in1k", 2048, 176),
    "resnet50-a1": ("resnet50.a1_in1k", 2048, 224),
    "resnet50-ssl-yfcc": ("resnet50.fb_ssl_yfcc100m_ft_in1k", 2048, 224),
    "resnet50-swsl-ig1b": ("resnet50.fb_swsl_ig1b_ft_in1k", 2048, 224),
    "convnext-tiny-in1k": ("convnext_tiny.fb_in1k", 768, 224),
    "convnext-base-in22k": ("convnext_base.fb_in22k", 1024, 224),
    "vit-s16-augreg-in21k": ("vit_small_patch16_224.augreg_in21k", 384, 224),
    "vit-b16-augreg-in21k": ("vit_base_patch16_224.augreg_in21k", 768, 224),
    "deit3-s16-in1k": ("deit3_small_patch16_224.fb_in1k", 384, 224),
    "deit3-b16-in1k": ("deit3_base_patch16_224.fb_in1k", 768, 224),
    "deit-b16-distilled-in1k": ("deit_base_distilled_patch16_224.fb_in1k", 768, 224),
    "dino-s16": ("vit_small_patch16_224.dino", 384, 224),
    "dino-b16": ("vit_base_patch16_224.dino", 768, 224),
    "dinov2-s14": ("vit_small_patch14_dinov2.lvd142m", 384, 518),
    "dinov2-b14": ("vit_base_patch14_dinov2.lvd142m", 768, 518),
    "dinov2-s14-reg4": ("vit_small_patch14_reg4_dinov2.lvd142m", 384, 518),
    "dinov2-b14-reg4": ("vit_base_patch14_reg4_dinov2.lvd142m", 768, 518),
    "dinov3-s16": ("vit_small_patch16_dinov3.lvd1689m", 384, 256),
    "dinov3-b16": ("vit_base_patch16_dinov3.lvd1689m", 768, 256),
    "dinov3-convnext-tiny": ("convnext_tiny.dinov3_lvd1689m", 768, 224),
    "dinov3-convnext-small": ("convnext_small.dinov3_lvd1689m", 768, 224),
    "mae-b16": ("vit_base_patch16_224.mae", 768, 224),
    "hiera-mae-b": ("hiera_base_224.mae", 768, 224),
    "convnextv2-fcmae-tiny": ("convnextv2_tiny.fcmae", 768, 224),
    "convnextv2-fcmae-base": ("convnextv2_base.fcmae", 1024, 224),
    "beitv2-b16-ft-in22k": ("beitv2_base_patch16_224.in1k_ft_in22k", 768, 224),
    "beit3-b16": ("beit3_base_patch16_224.pt", 768, 224),
    "ijepa-h14": ("vit_huge_patch14_gap_224.in1k_ijepa", 1280, 224),
    "aimv2-l14": ("aimv2_large_patch14_224.apple_pt", 1024, 224),
    "eva02-s14-mim": ("eva02_small_patch14_224.mim_in22k", 384, 224),
    "eva02-b14-mim": ("eva02_base_patch14_224.mim_in22k", 768, 224),
    "clip-openai-b16": ("vit_base_patch16_clip_quickgelu_224.openai", 768, 224),
    "clip-openai-rn50": ("resnet50_clip.openai", 2048, 224),
    "clip-laion2b-b16": ("vit_base_patch16_clip_224.laion2b", 768, 224),
    "clip-datacomp-b16": ("vit_base_patch16_clip_224.datacompxl", 768, 224),
    "clip-dfn2b-b16": ("vit_base_patch16_clip_224.dfn2b", 768, 224),
    "metaclip-b16": ("vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b", 768, 224),
    "siglip-b16": ("vit_base_patch16_siglip_224.webli", 768, 224),
    "siglip2-b16": ("vit_base_patch16_siglip_224.v2_webli", 768, 224),
    "pe-core-b16": ("vit_pe_core_base_patch16_224.fb", 768, 224),
    "tipsv2-b14": ("vit_base_patch14_reg1_tipsv2.webli", 768, 448),
    "c-radio-v3-b16": ("vit_base_patch16_radio_v3.c_radio", 768, 512),
    "seer-regnety32": ("regnety_320.seer", 3712, 224),
}

HALVES = (0.5, 0.5, 0.5)
CLIP = (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize("name", MODERN)
def test_a_modern_model_can_be_built_and_is_as_wide_and_takes_what_it_says(name):
    tag, width, side = MODERN[name]
    entry = catalogue()[name]
    assert "modern" in entry.sets
    assert entry.arch == tag
    with torch.device("meta"):  # no memory for the weights
        module = timm.create_model(entry.arch, num_classes=0, **entry.options).eval()
    with torch.inference_mode():
        embedding = embed(module, torch.zeros(1, 3, side, side, device="meta"), [""])[""]
    assert embedding.shape == (1, width)
    assert entry.width == width

    found, config = data_config_of(module, entry), get_pretrained_cfg(tag)
    assert found["input_size"] == config.input_size == (3, side, side)
    for field in ("mean", "std", "interpolation", "crop_pct"):
        assert found[field] == getattr(config, field), field


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("vit-s16-augreg-in21k", HALVES),
        ("siglip2-b16", HALVES),
        ("pe-core-b16", HALVES),
        ("clip-openai-b16", CLIP),
        ("eva02-s14-mim", CLIP),
        ("c-radio-v3-b16", CLIP),
        ("tipsv2-b14", (0.0, 0.0, 0.0)),
    ],
)
def test_models_of_another_input_than_most_are_known(name, mean):
    entry = catalogue()[name]
    with torch.device("meta"):
        module = timm.create_model(entry.arch, num_classes=0)
    assert data_config_of(module, entry)["mean"] == mean


def test_the_modern_models_are_these():
    named = {name for name, entry in catalogue().items() if "modern" in entry.sets}
    assert named == MODERN.keys()
    assert len(named) == 44


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet50-tv", {"fc"}),
        ("dino-s16", set()),
        ("convnext-tiny-in1k", {"head.fc"}),
        # one of each further module of timm's, which filters its files in a way of its own
        ("deit3-s16-in1k", {"head"}),
        ("dinov3-s16", set()),
        ("eva02-s14-mim", set()),
        ("convnextv2-fcmae-tiny", set()),
        ("hiera-mae-b", set()),
        ("clip-openai-rn50", {"head.proj"}),
    ],
)
def test_a_modern_model_loads_from_the_cache_of_the_hub(name, head, new_home, monkeypatch):
    tag = MODERN[name][0]
    with torch.device("meta"):
        shapes = {k: t.shape for k, t in timm.create_model(tag).state_dict().items()}
        body = timm.create_model(tag, num_classes=0).state_dict().keys()
    assert {k.rpartition(".")[0] for k in shapes if k not in body} == head
    draw = torch.Generator().manual_seed(4)
    state = {k: torch.rand(shape, generator=draw) for k, shape in shapes.items()}
    repository = new_home / f"models--timm--{tag}"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    save_file(state, snapshot / "model.safetensors")
    # The hub's code has read both from the environment, when it was imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(new_home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    try:
        found = load_model(name).module.state_dict()
    finally:
        (snapshot / "model.safetensors").unlink()
    assert found.keys() == body
    assert all(torch.equal(found[k], state[k].to(found[k].dtype)) for k in body)
