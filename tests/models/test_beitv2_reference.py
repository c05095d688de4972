"""BEiT v2 by its paper (arXiv:2208.06366), on the names of its own pretraining code."""

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear

from featstore.models import embed, load_model

SIDE, WIDTH, HEADS, BLOCKS = 14, 768, 12, 12


def random_weights(shapes):
    """Values that leave no part idle: residuals, biases and positions all count."""
    draw = torch.Generator().manual_seed(5)
    weights = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=draw)
        if name.endswith("relative_position_bias_table"):
            weights[name] = values
        elif "gamma" in name or (name.endswith("weight") and "norm" in name):
            weights[name] = 0.5 + 0.2 * values
        else:
            weights[name] = 0.05 * values
    return weights


def position(query, key):
    """Row of the table for two tokens; the class token is 0, patches follow row by row.

    There is a row for each pair of offsets, in reading order, and one each for class to patch,
    patch to class, and class to class.
    """
    span = 2 * SIDE - 1
    if query == 0:
        return span * span + (2 if key == 0 else 0)
    if key == 0:
        return span * span + 1
    down = (query - 1) // SIDE - (key - 1) // SIDE
    right = (query - 1) % SIDE - (key - 1) % SIDE
    return (down + SIDE - 1) * span + right + SIDE - 1


def reference(w, pixels):
    """Three embeddings of (n, 3, 224, 224) pixels, each (n, 768), from weights as first named.

    The paper leaves open what becomes of the pretrained final norm when patches are averaged.
    """
    n, tokens = len(pixels), SIDE * SIDE + 1
    patches = pixels.unfold(2, 16, 16).unfold(3, 16, 16)  # n, 3, 14, 14, 16, 16
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(n, SIDE * SIDE, 3 * 256)
    x = linear(patches, w["patch_embed.proj.weight"].flatten(1), w["patch_embed.proj.bias"])
    x = torch.cat([w["cls_token"].expand(n, 1, WIDTH), x], dim=1)

    index = torch.tensor([[position(q, k) for k in range(tokens)] for q in range(tokens)])
    bias = w["rel_pos_bias.relative_position_bias_table"][index].permute(2, 0, 1)

    def norm(x, name):
        return layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    for block in (f"blocks.{number}" for number in range(BLOCKS)):
        y = norm(x, f"{block}.norm1")
        query, key, value = w[f"{block}.attn.qkv.weight"].chunk(3)
        q = linear(y, query, w[f"{block}.attn.q_bias"])
        k = linear(y, key)
        v = linear(y, value, w[f"{block}.attn.v_bias"])
        q, k, v = (t.reshape(n, tokens, HEADS, -1).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5 + bias).softmax(dim=3)
        y = (weights @ v).transpose(1, 2).reshape(n, tokens, WIDTH)
        y = linear(y, w[f"{block}.attn.proj.weight"], w[f"{block}.attn.proj.bias"])
        x = x + w[f"{block}.gamma_1"] * y
        y = norm(x, f"{block}.norm2")
        y = gelu(linear(y, w[f"{block}.mlp.fc1.weight"], w[f"{block}.mlp.fc1.bias"]))
        y = linear(y, w[f"{block}.mlp.fc2.weight"], w[f"{block}.mlp.fc2.bias"])
        x = x + w[f"{block}.gamma_2"] * y

    mean = x[:, 1:].mean(dim=1)
    return {  # through a norm without weights, through the trained one, the class token through it
        "beitv2-vitb16": layer_norm(mean, (WIDTH,), eps=1e-6),
        "beitv2-vitb16-norm": norm(mean, "norm"),
        "beitv2-vitb16-cls": norm(x, "norm")[:, 0],
    }


PIXELS = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def weights(layouts):
    return random_weights(layouts.encoder_of("beitv2-vitb16"))


@pytest.fixture(scope="module")
def embeddings(weights):
    with torch.inference_mode():
        return reference(weights, PIXELS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beitv2-vitb16", "beitv2-vitb16-norm", "beitv2-vitb16-cls"])
def test_beit_v2_embeds_as_its_paper_says(name, weights, embeddings, layouts, new_home):
    path = layouts.make(name, weights).save(new_home / "beitv2.pth")
    try:
        module = load_model(name, weights=str(path)).module
    finally:
        path.unlink()  # 350 MB
    with torch.inference_mode():
        found = embed(module, PIXELS, [""])[""]
    torch.testing.assert_close(found, embeddings[name], atol=1e-5, rtol=1e-5)
    others = [embeddings[other] for other in embeddings if other != name]
    assert all((found - other).abs().max() > 0.1 for other in others)  # a mix-up would be seen
