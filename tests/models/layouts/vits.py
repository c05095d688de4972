"""ViT-B/16 checkpoints in the layouts of the codes that wrote them."""

from .checkpoint import Checkpoint, named, run_arguments
from .openmmlab import openmmlab
from .shapes import SCALER, affine, batch_norm, beit_block, block, vit_b16


def dino(body, draw):
    tensors, sources = named(body, str)
    return Checkpoint(tensors, tensors, sources)


def ibot(body, draw):
    """The teacher with its head."""
    tensors, sources = named(body, str)
    head = affine("mlp.0", 2048, 768) | affine("mlp.2", 2048, 2048) | affine("mlp.4", 256, 2048)
    for layer in ("last_layer", "last_layer2"):
        head |= {f"{layer}.weight_g": (8192, 1), f"{layer}.weight_v": (8192, 256)}
    tensors |= draw(head, "head.")
    return Checkpoint({"state_dict": tensors}, tensors, sources)


def moco_v3(body, draw, encoder):
    """Base and momentum encoder, both whole."""
    other = {"base": "momentum", "momentum": "base"}[encoder]
    tensors, sources = named(body, lambda name: f"module.{encoder}_encoder.{name}")
    head = {"0.weight": (4096, 768), "3.weight": (4096, 4096), "6.weight": (256, 4096)}
    head |= batch_norm("1", 4096) | batch_norm("4", 4096) | batch_norm("7", 256, affine=False)
    head = {f"head.{name}": shape for name, shape in head.items()}
    tensors |= draw(head, f"module.{encoder}_encoder.")
    tensors |= draw(vit_b16() | head, f"module.{other}_encoder.")
    predictor = {"0.weight": (4096, 256), "3.weight": (256, 4096)} | batch_norm("1", 4096)
    predictor |= batch_norm("4", 256, affine=False)
    tensors |= draw(predictor, "module.predictor.")
    content = {"epoch": 300, "arch": "vit_base", "state_dict": tensors}
    content |= {"optimizer": draw.adam(1, 1, 768), "scaler": SCALER}
    return Checkpoint(content, tensors, sources)


def _decoder(prediction, *, split_attention=False):
    shapes = {"mask_token": (1, 1, 512), "decoder_pos_embed": (1, 197, 512)}
    shapes |= affine("decoder_embed", 512, 768)
    for number in range(8):
        name = f"decoder_blocks.{number}"
        shapes |= block(name, 512)
        if split_attention:
            del shapes[f"{name}.attn.qkv.weight"], shapes[f"{name}.attn.qkv.bias"]
            shapes |= affine(f"{name}.attn.q", 512, 512) | affine(f"{name}.attn.kv", 1024, 512)
    return shapes | affine("decoder_norm", 512) | affine("decoder_pred", prediction, 512)


def _run(draw):
    return {"optimizer": draw.adam(1, 1, 768), "epoch": 399, "scaler": SCALER}


def mae(body, draw, *, decoder=False, training=False):
    """The encoder alone; of the training script also the decoder and how it was called."""
    tensors, sources = named(body, str)
    tensors |= draw(_decoder(768) if decoder or training else {})
    content = {"model": tensors}
    if training:
        content |= _run(draw) | {"args": run_arguments()}
    return Checkpoint(content, tensors, sources)


def milan(body, draw, *, training=True):
    """The decoder attends from its own queries, so its projection is in two parts."""
    tensors, sources = named(body, str)
    tensors |= draw(_decoder(512, split_attention=True))
    content = {"model": tensors}
    if training:
        content |= _run(draw) | {"args": run_arguments()}
    return Checkpoint(content, tensors, sources)


def _toolbox_name(name):
    """Of OpenMMLab's transformer: blocks are layers, `ffn` is a list of lists of layers."""
    part, _, rest = name.partition(".")
    if part == "patch_embed":
        return name.replace("proj", "projection")
    if part == "norm":
        return f"ln1.{rest}"
    if part != "blocks":
        return name
    number, inner = rest.split(".", 1)
    inner = inner.replace("norm", "ln")
    inner = inner.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")
    return f"layers.{number}.{inner}"


def maskfeat(body, draw, *, preprocessor=False):
    junk = draw({"backbone.mask_token": (1, 1, 768)}) | draw(affine("neck.fc", 108, 768))
    target = {"weight_x": (3, 1, 3, 3), "weight_y": (3, 1, 3, 3), "gaussian_kernel": (16, 16)}
    junk |= draw(target, "target_generator.")
    return openmmlab(body, draw, _toolbox_name, junk, preprocessor=preprocessor)


def _neck(prediction):
    shapes = {"mask_token": (1, 1, 512), "decoder_pos_embed": (1, 197, 512)}
    shapes |= affine("decoder_embed", 512, 768)
    names = {"norms": ("ln1", "ln2"), "layers": ("ffn.layers.0.0", "ffn.layers.1")}
    for number in range(8):
        shapes |= block(f"decoder_blocks.{number}", 512, **names)
    return shapes | affine("ln1", 512) | affine("decoder_pred", prediction, 512)


def pixmim(body, draw, *, preprocessor=False):
    junk = draw(_neck(768), "neck.")
    junk |= draw({"target_generator.low_pass_filter": (3, 224, 224)})
    return openmmlab(body, draw, _toolbox_name, junk, preprocessor=preprocessor)


def _clip_blocks(prefix, width):
    shapes = {}
    for number in (0, 11):  # the others between would take 500 MB once converted
        name = f"{prefix}transformer.resblocks.{number}"
        shapes |= {f"{name}.attn.in_proj_weight": (3 * width, width)}
        shapes |= {f"{name}.attn.in_proj_bias": (3 * width,)}
        shapes |= affine(f"{name}.attn.out_proj", width, width)
        shapes |= affine(f"{name}.ln_1", width) | affine(f"{name}.ln_2", width)
        shapes |= affine(f"{name}.mlp.c_fc", 4 * width, width)
        shapes |= affine(f"{name}.mlp.c_proj", width, 4 * width)
    return shapes


def eva(body, draw, *, preprocessor=False):
    """The CLIP model that is learned from lies in the file; here with a sixth of its blocks."""
    visual = {"class_embedding": (768,), "positional_embedding": (197, 768), "proj": (768, 512)}
    visual |= {"conv1.weight": (768, 3, 16, 16)}
    visual |= affine("ln_pre", 768) | affine("ln_post", 768) | _clip_blocks("", 768)
    clip = {f"visual.{name}": shape for name, shape in visual.items()} | _clip_blocks("", 512)
    clip |= {"token_embedding.weight": (49408, 512), "positional_embedding": (77, 512)}
    clip |= {"text_projection": (512, 512), "logit_scale": ()} | affine("ln_final", 512)
    junk = draw(_neck(512), "neck.") | draw(clip, "target_generator.tokenizer.")
    return openmmlab(body, draw, _toolbox_name, junk, preprocessor=preprocessor)


def beitv2(body, draw, final, *, training=False):
    """`final` norm: that of the mean token (A), thrown away (B), that of the class token (C)."""
    tensors, _ = named(body, str)
    junk = {"mask_token": (1, 1, 768), "rel_pos_bias.relative_position_index": (197, 197)}
    junk |= affine("lm_head", 8192, 768)
    junk |= beit_block("cls_pt_layers.0") | beit_block("cls_pt_layers.1")
    tensors |= draw(junk)
    table = "rel_pos_bias.relative_position_bias_table"
    sources = {name: name for name in body if name != table and not name.startswith("norm.")}
    sources |= {f"blocks.{i}.attn.relative_position_bias_table": table for i in range(12)}
    constants = {}
    if final == "A":
        sources |= {"fc_norm.weight": "norm.weight", "fc_norm.bias": "norm.bias"}
    elif final == "B":
        constants = {"fc_norm.weight": 1.0, "fc_norm.bias": 0.0}
    else:
        sources |= {"norm.weight": "norm.weight", "norm.bias": "norm.bias"}
    content = {"model": tensors}
    if training:
        content |= _run(draw) | {"args": run_arguments()}
    return Checkpoint(content, tensors, sources, constants)
