"""A vision transformer by its paper (arXiv:2010.11929), on the names OpenMMLab gives its parts."""

import pytest
import torch
from torch import nn

from featstore.models import embed


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x):
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / (width // self.heads) ** 0.5).softmax(dim=3)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, tokens, width))


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        inner = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.layers = nn.Sequential(inner, nn.Linear(4 * width, width))

    def forward(self, x):
        return self.layers(x)


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ln2 = nn.LayerNorm(width, eps=1e-6)
        self.ffn = FeedForward(width)

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.projection = nn.Conv2d(3, width, 16, stride=16)

    def forward(self, pixels):
        return self.projection(pixels).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Base width; embeds (n, 3, 224, 224) pixels as the class token after the final norm."""

    def __init__(self, width=768, heads=12, depth=12):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 197, width))
        self.patch_embed = PatchEmbed(width)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.ln1 = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels):
        x = self.patch_embed(pixels)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.ln1(self.layers(x))[:, 0]


@pytest.mark.slow
def test_maskfeat_embeds_as_a_transformer_of_its_own_toolbox_would(layouts, load_original):
    draw = torch.Generator().manual_seed(8)
    with torch.device("meta"):
        reference = VisionTransformer()
    reference = reference.to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            is_scale = "ln" in name and name.endswith("weight")
            parameter.normal_(is_scale, 0.3 if is_scale else 0.05, generator=draw)

    original = layouts.make("maskfeat-vitb16")
    named = {f"backbone.{name}": t for name, t in reference.state_dict().items()}
    assert set(named) == set(original.sources.values())
    original.tensors |= named
    module = load_original("maskfeat-vitb16", original).module
    pixels = torch.randn(1, 3, 224, 224, generator=draw)
    with torch.inference_mode():
        found, expected = embed(module, pixels, [""])[""], reference(pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
