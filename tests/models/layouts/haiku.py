"""DeepMind's BYOL, written by JAX and Haiku."""

import re

import numpy as np

from .checkpoint import ByolState, Checkpoint, FrozenDict, named
from .shapes import affine

STATISTICS = {"running_mean": "mean_ema", "running_var": "var_ema"}
LEAVES = {"bn.weight": "scale", "bn.bias": "offset", "conv.weight": "w"}


def _place(name):
    """Path and leaf of a tensor in Haiku's parameters or state."""
    name, _, leaf = name.rpartition(".")
    stage, _, rest = name.partition(".")
    if rest:
        number, _, part = rest.partition(".")
        parts = {"downsample.0": "shortcut_conv", "downsample.1": "shortcut_batchnorm"}
        parts |= {f"conv{i + 1}": f"conv_{i}" for i in range(3)}
        parts |= {f"bn{i + 1}": f"batchnorm_{i}" for i in range(3)}
        path = f"block_group_{int(stage[-1]) - 1}/~/block_{number}/~/{parts[part]}"
    else:
        path = {"conv1": "initial_conv", "bn1": "initial_batchnorm"}[name]
    path = f"res_net50/~/{path}"
    if leaf in STATISTICS:
        return f"{path}/~/{STATISTICS[leaf]}", "average"
    kind = "conv" if re.search("conv(_.)?$", path) else "bn"
    return path, LEAVES[f"{kind}.{leaf}"]


def _array(tensor):
    """Height, width, in, out for kernels; a vector along the last of four dimensions."""
    tensor = tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.view(1, 1, 1, -1)
    return np.ascontiguousarray(tensor.numpy())


def _trees(body):
    """Parameters and state of a network."""
    params, state = {}, {}
    for name, tensor in body.items():
        path, leaf = _place(name)
        tree = state if leaf == "average" else params
        tree.setdefault(path, {})[leaf] = _array(tensor)
        if leaf == "average":
            tree[path] |= {"hidden": _array(tensor) * 0, "counter": np.array(9, np.int32)}
    return params, state


def _frozen(tree):
    return FrozenDict((k, _frozen(v) if isinstance(v, dict) else v) for k, v in tree.items())


def byol_deepmind(body, draw, *, converted=False):
    """A pickle of the whole experiment; or what others made of it, with torchvision's names."""
    if converted:
        tensors, sources = named(body, lambda name: name)
        tensors |= draw(affine("fc", 1000, 2048))
        return Checkpoint({"state_dict": tensors}, tensors, sources)
    body = {name: t for name, t in body.items() if not name.endswith("batches_tracked")}
    tensors, sources = named(body, lambda name: " ".join(_place(name)))
    params, state = _trees(body)
    twin = {name: body[name].shape for name in body if not name.startswith("layer4")}
    target_params, target_state = _trees(draw(twin))  # less the last stage, to save 60 MB
    heads = {"projector/linear": {"w": (2048, 64), "b": (64,)}}
    heads |= {"projector/batch_norm": {"scale": (1, 64), "offset": (1, 64)}}
    heads |= {"predictor/linear_1": {"w": (64, 256)}, "classifier": {"w": (2048, 10), "b": (10,)}}
    for tree in (params, target_params):
        tree |= {
            path: {k: t.numpy() for k, t in draw(leaf).items()} for path, leaf in heads.items()
        }
    trees = [_frozen(tree) for tree in (params, target_params, state, target_state)]
    momentum = _frozen({"res_net50/~/initial_conv": params["res_net50/~/initial_conv"]})
    content = {
        "experiment_state": ByolState(*trees, [momentum, np.float32(0.5)]),
        "step": np.array(1000),
        "rng": np.array([0, 1], np.uint32),
    }
    return Checkpoint(content, tensors, sources, container="pickle")
