"""What the encoders of the studies make of an image, straight from their files' names."""

import torch
import torchvision
from torch.func import functional_call
from torch.nn import functional

SIDE, WIDTH, HEADS, DEPTH = 14, 768, 12, 12

# What OpenMMLab calls the parts of a vision transformer.
TOOLBOX = {
    "prefix": "backbone.",
    "patch": "patch_embed.projection",
    "blocks": "layers",
    "norms": ("ln1", "ln2"),
    "layers": ("ffn.layers.0.0", "ffn.layers.1"),
    "final": "ln1",
}
VITS = {
    "dino-vitb16": {},
    "ibot-vitb16": {},
    "moco-v3-vitb16-momentum": {"prefix": "module.momentum_encoder."},
    "moco-v3-vitb16": {"prefix": "module.base_encoder."},
    "mae-vitb16": {},
    "maskfeat-vitb16": TOOLBOX,
    "milan-vitb16": {},
    "eva-vitb16": TOOLBOX,
    "pixmim-vitb16": TOOLBOX,
    # The paper leaves open what becomes of the pretrained norm when patches are averaged.
    "beitv2-vitb16": {"pool": "mean, then a new norm"},
    "beitv2-vitb16-norm": {"pool": "mean, then norm"},
    "beitv2-vitb16-cls": {},
}


def embedding(name, checkpoint, pixels):
    """Embedding of (n, 3, h, w) pixels by the encoder in the file of a catalogue entry, (n, d)."""
    if name in VITS:
        return transformer(checkpoint.tensors, pixels, **VITS[name])
    with torch.device("meta"):
        module = torchvision.models.resnet50().eval()
    module.fc = torch.nn.Identity()
    return functional_call(module, checkpoint.expected(), pixels)


def relative_position(query, key):
    """Row of BEiT's table for two tokens; the class token is 0, patches follow row by row.

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


def transformer(
    tensors,
    pixels,
    *,
    prefix="",
    patch="patch_embed.proj",
    blocks="blocks",
    norms=("norm1", "norm2"),
    layers=("mlp.fc1", "mlp.fc2"),
    final="norm",
    pool="class token after norm",
):
    """ViT-B/16 (arXiv:2010.11929), and as BEiT v2 varies it where its tensors are there.

    That is a bias of relative positions shared by all blocks in place of absolute positions, scaled
    residuals, and keys without bias (arXiv:2208.06366 and 2106.08254).
    """
    w = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    n, tokens = len(pixels), SIDE * SIDE + 1

    def linear(x, name, bias=None):
        bias = w[f"{name}.bias"] if bias is None else bias
        return functional.linear(x, w[f"{name}.weight"].flatten(1), bias)

    def norm(x, name):
        return functional.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    position = 0.0
    if "rel_pos_bias.relative_position_bias_table" in w:
        rows = [[relative_position(q, k) for k in range(tokens)] for q in range(tokens)]
        table = w["rel_pos_bias.relative_position_bias_table"]
        position = table[torch.tensor(rows)].permute(2, 0, 1)

    def attention(x, name):
        bias = None
        if f"{name}.q_bias" in w:
            bias = torch.cat([w[f"{name}.q_bias"], torch.zeros(WIDTH), w[f"{name}.v_bias"]])
        parts = linear(x, f"{name}.qkv", bias).split(WIDTH, dim=2)
        q, k, v = (part.reshape(n, tokens, HEADS, -1).transpose(1, 2) for part in parts)
        weights = (q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5 + position).softmax(dim=3)
        return linear((weights @ v).transpose(1, 2).reshape(n, tokens, WIDTH), f"{name}.proj")

    patches = pixels.unfold(2, 16, 16).unfold(3, 16, 16)  # n, 3, 14, 14, 16, 16
    x = linear(patches.permute(0, 2, 3, 1, 4, 5).reshape(n, SIDE * SIDE, 3 * 256), patch)
    x = torch.cat([w["cls_token"].expand(n, 1, WIDTH), x], dim=1) + w.get("pos_embed", 0.0)
    for block in (f"{blocks}.{number}" for number in range(DEPTH)):
        y = attention(norm(x, f"{block}.{norms[0]}"), f"{block}.attn")
        x = x + w.get(f"{block}.gamma_1", 1.0) * y
        y = functional.gelu(linear(norm(x, f"{block}.{norms[1]}"), f"{block}.{layers[0]}"))
        x = x + w.get(f"{block}.gamma_2", 1.0) * linear(y, f"{block}.{layers[1]}")
    if pool == "class token after norm":
        return norm(x[:, 0], final)
    mean = x[:, 1:].mean(dim=1)
    return (
        norm(mean, final)
        if pool == "mean, then norm"
        else functional.layer_norm(mean, (WIDTH,), eps=1e-6)
    )
