"""Encoders against hand-written BatchNorm and plain timm calls, in every mode and at every site."""

import copy
from collections import defaultdict

import pytest
import timm
import torch
from timm.models.coat import CoaT
from timm.models.pit import PoolingVisionTransformer
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.models.volo import VOLO
from torch import nn

from featstore.errors import UnknownNameError
from featstore.models import SITES, Encoder, batch_norms, create_backbone

MEAN, STD = (0.48, 0.45, 0.4), (0.22, 0.23, 0.25)
CPU = torch.device("cpu")


def lively(module):
    """The module with running statistics and scales as after training, not as at birth."""
    draw = torch.Generator().manual_seed(7)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.5, 0.5, generator=draw)
            layer.running_var.uniform_(0.5, 2, generator=draw)
            layer.weight.data.uniform_(0.5, 1.5, generator=draw)
            layer.bias.data.uniform_(-0.5, 0.5, generator=draw)
    return module.eval()


def dropping():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_resnet", num_classes=0, drop_rate=0.5, drop_path_rate=0.5)


BN_MODELS = {
    "BatchNorm2d": lambda: create_backbone("tiny-resnet", seed=0),
    "timm's BatchNormAct2d": lambda: create_backbone("test_efficientnet", seed=0),
    "with dropout": dropping,
}


@pytest.fixture(params=BN_MODELS.values(), ids=BN_MODELS)
def module(request):
    return lively(request.param())


def images(seed, n=6, size=32):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=draw)


def normalised(pixels):
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (MEAN, STD))
    return (pixels / 255 - mean) / std


def encoder_of(module, *sites, **options):
    options = {"mean": MEAN, "std": STD, "device": CPU} | options
    return Encoder(module, sites or ("",), **options)


def batch_norm_by_hand(layer, x, mean, variance):
    shape = (1, -1, 1, 1)
    y = (x - mean.view(shape)) / torch.sqrt(variance.view(shape) + layer.eps)
    y = y * layer.weight.view(shape) + layer.bias.view(shape)
    return layer.act(y) if hasattr(layer, "act") else y  # timm's carry their activation


def with_batch_statistics(module, seen=None):
    """A copy whose every BatchNorm is the textbook formula; `seen` collects what it normalised by.

    Mean and unbiased variance of each batch, per layer: what running statistics are averaged of.
    """
    module = copy.deepcopy(module).eval()
    for name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d):

            def forward(x, layer=layer, name=name):
                mean = x.mean(dim=(0, 2, 3))
                squares = ((x - mean.view(1, -1, 1, 1)) ** 2).sum(dim=(0, 2, 3))
                count = x.numel() // x.shape[1]
                if seen is not None:
                    seen[name].append((mean, squares / (count - 1)))
                return batch_norm_by_hand(layer, x, mean, squares / count)

            layer.forward = forward
    return module


def with_statistics(module, statistics):
    """A copy whose every BatchNorm is the textbook formula under the given statistics."""
    module = copy.deepcopy(module).eval()
    for name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d):

            def forward(x, layer=layer, name=name):
                return batch_norm_by_hand(layer, x, *statistics[name])

            layer.forward = forward
    return module


@torch.no_grad()
def test_eval_mode_normalises_by_the_statistics_as_shipped(module):
    shipped = {
        name: (layer.running_mean.clone(), layer.running_var.clone())
        for name, layer in module.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
    }
    expected = with_statistics(module, shipped)(normalised(images(1)))
    embedded = encoder_of(module)(images(1))[""]
    torch.testing.assert_close(embedded, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedded, module(normalised(images(1))), rtol=1e-6, atol=1e-6)
    assert embedded.dtype == torch.float32


@torch.no_grad()
def test_batch_mode_normalises_by_the_batch_itself(module):
    expected = with_batch_statistics(module)(normalised(images(1)))
    encoder = encoder_of(copy.deepcopy(module))
    encoder.use_batch_statistics()
    embedded = encoder(images(1))[""]
    torch.testing.assert_close(embedded, expected, rtol=1e-4, atol=1e-5)
    in_eval = encoder_of(module)(images(1))[""]
    assert (embedded - in_eval).abs().max() > 0.01


@torch.no_grad()
def test_batch_mode_keeps_no_memory_and_ignores_the_order_within_a_batch(module):
    encoder = encoder_of(copy.deepcopy(module))
    encoder.use_batch_statistics()
    first = encoder(images(1))[""]
    encoder(images(2, n=4))
    assert torch.equal(encoder(images(1))[""], first)
    shuffled = torch.tensor([3, 5, 0, 1, 4, 2])
    torch.testing.assert_close(
        encoder(images(1)[shuffled])[""], first[shuffled], rtol=1e-4, atol=1e-5
    )
    alone = encoder(images(1)[:3])[""]
    assert (alone - first[:3]).abs().max() > 1e-3  # the others of a batch do matter


@torch.no_grad()
def test_adapt_mode_averages_the_statistics_of_batches_and_then_freezes_them(module):
    train = [images(10 + i, n) for i, n in enumerate((6, 6, 3))]
    seen = defaultdict(list)
    reference = with_batch_statistics(module, seen)
    for batch in train:
        reference(normalised(batch))
    # Each batch counts the same, whatever its size: PyTorch's cumulative average.
    averages = {
        name: tuple(torch.stack(part).mean(dim=0) for part in zip(*batches, strict=True))
        for name, batches in seen.items()
    }
    expected = with_statistics(module, averages)(normalised(images(1)))

    adapted = copy.deepcopy(module)
    encoder = encoder_of(adapted)
    with encoder.adapting():
        for batch in train:
            encoder(batch)
    embedded = encoder(images(1))[""]
    torch.testing.assert_close(embedded, expected, rtol=1e-4, atol=1e-5)
    for name, layer in adapted.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            torch.testing.assert_close(layer.running_mean, averages[name][0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(layer.running_var, averages[name][1], rtol=1e-4, atol=1e-5)
    assert torch.equal(encoder(images(1))[""], embedded)  # frozen
    torch.testing.assert_close(encoder(images(1)[:1])[""], embedded[:1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_adapting_starts_anew_so_that_what_came_before_leaves_no_trace(module):
    once, twice = (encoder_of(copy.deepcopy(module)) for _ in range(2))
    with twice.adapting():
        twice(images(99))
    for encoder in (once, twice):
        with encoder.adapting():
            encoder(images(10))
            encoder(images(11))
    assert torch.equal(once(images(1))[""], twice(images(1))[""])


def test_adapting_leaves_a_module_in_eval_mode_even_when_it_is_interrupted(module):
    momenta = [layer.momentum for layer in batch_norms(module)]
    encoder = encoder_of(module)

    def interrupted():
        with encoder.adapting():
            encoder(images(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not any(part.training for part in module.modules())
    assert [layer.momentum for layer in batch_norms(module)] == momenta


def in_mode(module, mode):
    encoder = encoder_of(copy.deepcopy(module))
    if mode == "batch":
        encoder.use_batch_statistics()
    if mode == "adapt":
        with encoder.adapting():
            encoder(images(10))
            encoder(images(11))
    return encoder


@pytest.mark.parametrize("mode", ["eval", "batch", "adapt"])
def test_two_runs_give_equal_bytes_and_dropout_stays_off(module, mode):
    runs = []
    for seed in (1, 2):  # would show in dropout
        torch.manual_seed(seed)
        runs.append(in_mode(module, mode)(images(1))[""])
    assert runs[0].numpy().tobytes() == runs[1].numpy().tobytes()
    assert runs[0].isfinite().all()


@pytest.mark.parametrize("mode", ["eval", "batch", "adapt"])
def test_a_module_shared_by_all_modes_keeps_its_statistics(module, mode):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    in_mode(module, mode)(images(1))
    encoder_of(module)(images(1))
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(layer.track_running_stats for layer in batch_norms(module))


@pytest.mark.parametrize("mode", ["eval", "batch", "adapt"])
def test_a_model_without_batch_norm_is_the_same_in_every_mode(mode):
    vit = create_backbone("tiny-vit", seed=0)
    assert batch_norms(vit) == []
    assert torch.equal(in_mode(vit, mode)(images(1))[""], encoder_of(vit)(images(1))[""])


def test_the_batch_norms_of_timm_are_recognised():
    efficient = create_backbone("test_efficientnet", seed=0)
    assert {type(layer).__name__ for layer in batch_norms(efficient)} == {"BatchNormAct2d"}
    assert len(batch_norms(create_backbone("tiny-resnet", seed=0))) == 1 + 4 * 2 + 4
    for free in ("test_convnext", "test_efficientnet_gn", "test_nfnet", "test_vit"):
        assert batch_norms(create_backbone(free, seed=0)) == []


def vit(**options):
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=5, num_heads=2,
                             num_classes=0, **options).eval()  # fmt: skip


WITH_CLS = {
    "tiny-vit": (lambda: create_backbone("tiny-vit", seed=0).eval(), 1),
    "registers": (lambda: vit(reg_tokens=3), 4),
    "distilled": (
        lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=0), 2
    ),
    "eva": (
        lambda: timm.create_model("eva02_tiny_patch14_224", img_size=28, num_classes=0, depth=4), 1
    ),
}  # fmt: skip


@pytest.fixture(params=WITH_CLS.values(), ids=WITH_CLS)
def with_cls(request):
    build, prefix = request.param
    module = build().eval()
    side = module.patch_embed.img_size[0]
    return module, prefix, images(3, n=3, size=side)


@torch.no_grad()
def test_sites_of_a_transformer_equal_plain_calls_of_timm(with_cls):
    module, prefix, batch = with_cls
    tokens = []  # after each block, before the final norm
    hooks = [
        block.register_forward_hook(lambda _, __, output: tokens.append(output))
        for block in module.blocks
    ]
    features = module.forward_features(normalised(batch))
    for hook in hooks:
        hook.remove()
    average = features[:, prefix:].mean(dim=1)
    expected = {
        "": module(normalised(batch)),  # a model without classifier answers with its pre-logits
        "cls": features[:, 0],
        "avg": average,
        "cls+avg": torch.cat([features[:, 0], average], dim=1),
        "cls-last4": torch.cat([module.norm(block)[:, 0] for block in tokens[-4:]], dim=1),
    }
    found = encoder_of(module, *expected)(batch)
    assert found.keys() == expected.keys() == {"", *SITES}
    for site, rows in expected.items():
        torch.testing.assert_close(found[site], rows, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_several_sites_cost_one_forward_pass_and_equal_each_alone(with_cls):
    module, _, batch = with_cls
    passes = []
    for block in module.blocks:
        block.register_forward_hook(lambda block, *_: passes.append(block))
    together = encoder_of(module, "", *SITES)(batch)
    assert passes == list(module.blocks)
    for site in ("", *SITES):
        torch.testing.assert_close(encoder_of(module, site)(batch)[site], together[site])


@torch.no_grad()
def test_the_average_of_a_convolutional_model_is_over_space():
    resnet = lively(create_backbone("tiny-resnet", seed=0))
    features = resnet.forward_features(normalised(images(3)))
    found = encoder_of(resnet, "avg", "")(images(3))
    assert features.shape[1:] == (128, 2, 2)
    torch.testing.assert_close(found["avg"], features.flatten(2).sum(dim=2) / 4)
    torch.testing.assert_close(found[""], resnet(normalised(images(3))))


@torch.no_grad()
def test_the_average_of_a_model_with_channels_last_is_over_space():
    torch.manual_seed(0)
    swin = SwinTransformer(img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(1, 1),
                           num_heads=(2, 2), num_classes=0).eval()  # fmt: skip
    features = swin.forward_features(normalised(images(3)))
    assert features.shape[1:] == (8, 8, 32)
    expected = torch.einsum("nhwd->nd", features) / 64
    torch.testing.assert_close(encoder_of(swin, "avg")(images(3))["avg"], expected)


@torch.no_grad()
def test_a_class_token_is_no_patch_even_where_timm_does_not_count_it():
    torch.manual_seed(0)
    volo = VOLO([1, 1, 1, 1], img_size=32, patch_size=8, embed_dims=[16, 32, 32, 32],
                num_heads=[2, 2, 2, 2], num_classes=0).eval()  # fmt: skip
    assert not hasattr(volo, "num_prefix_tokens")
    features = volo.forward_features(normalised(images(3)))
    assert features.shape[1:] == (1 + 2 * 2, 32)
    found = encoder_of(volo, "cls", "avg")(images(3))
    torch.testing.assert_close(found["cls"], features[:, 0])
    torch.testing.assert_close(found["avg"], features[:, 1:].mean(dim=1))


@pytest.mark.parametrize("site", ["cls", "cls+avg", "cls-last4"])
@pytest.mark.parametrize("name", ["tiny-resnet", "test_convnext"])
def test_a_model_without_class_token_refuses_its_sites(name, site):
    with pytest.raises(UnknownNameError) as caught:
        encoder_of(create_backbone(name, seed=0), "", site)(images(1, n=2))
    assert "has no class token" in str(caught.value)
    assert f"@{site}" in str(caught.value)
    assert "use @avg" in str(caught.value)


def test_a_transformer_without_class_token_refuses_its_sites_as_well():
    gap = vit(class_token=False, global_pool="avg")
    with pytest.raises(UnknownNameError, match="VisionTransformer has no class token"):
        encoder_of(gap, "cls")(images(1))


def pit(**options):
    small = {"base_dims": (8, 8, 8), "depth": (1, 1, 1), "heads": (2, 2, 2), "num_classes": 0}
    return PoolingVisionTransformer(img_size=32, patch_size=8, stride=4, **small, **options)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_model_that_ends_in_class_tokens_alone_has_nothing_to_average(distilled):
    with pytest.raises(UnknownNameError, match="ends in class tokens alone, so no site @avg"):
        encoder_of(pit(distilled=distilled), "avg")(images(1))
    assert encoder_of(pit(distilled=distilled), "cls")(images(1))["cls"].shape == (6, 16)


@pytest.mark.parametrize(
    "module", [pit(), timm.create_model("cait_xxs24_224", img_size=32, depth=4, num_classes=0),
               VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2)],
    ids=["pit", "cait", "three blocks"],
)  # fmt: skip
def test_a_model_without_four_blocks_of_class_tokens_refuses_the_last_four(module):
    with pytest.raises(UnknownNameError, match=r"no site @cls-last4; use @cls"):
        encoder_of(module, "cls-last4")(images(1))


def test_a_model_that_ends_in_several_maps_embeds_but_refuses_to_average():
    torch.manual_seed(0)
    coat = CoaT(img_size=32, patch_size=4, embed_dims=(32,) * 4, serial_depths=(1,) * 4,
                parallel_depth=1, num_classes=0)  # fmt: skip
    assert encoder_of(coat)(images(1))[""].shape[0] == 6
    with pytest.raises(
        UnknownNameError, match="CoaT ends in several feature maps, so no site @avg"
    ):
        encoder_of(coat, "avg")(images(1))


@pytest.mark.parametrize(("precision", "digits"), [("bf16", 0.05), ("fp16", 0.01)])
@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-vit"])
def test_reduced_precision_comes_near_and_is_returned_as_float32(name, precision, digits):
    module = lively(create_backbone(name, seed=0))
    full = encoder_of(module, "", "avg")(images(1))
    reduced = encoder_of(module, "", "avg", precision=precision)(images(1))
    for site in full:
        assert reduced[site].dtype == torch.float32
        assert not torch.equal(reduced[site], full[site])  # it was computed in fewer digits
        error = (reduced[site] - full[site]).abs().max() / full[site].abs().max()
        assert error < digits


def test_embeddings_of_a_batch_are_those_of_its_images(module):
    encoder = encoder_of(module)
    together = encoder(images(1))[""]
    for row in range(3):
        alone = encoder(images(1)[row : row + 1])[""]
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_images_are_left_as_they_were(module):
    batch = images(1)
    before = batch.clone()
    encoder_of(module)(batch)
    assert torch.equal(batch, before)


def test_batches_do_not_overwrite_each_other_even_of_a_module_that_returns_its_input():
    encoder = encoder_of(nn.Flatten())
    batches = [images(0), images(1, n=3), images(2, n=6), images(3, size=16)]
    found = [encoder(batch)[""] for batch in batches]
    for rows, batch in zip(found, batches, strict=True):
        torch.testing.assert_close(rows, normalised(batch).flatten(1))
