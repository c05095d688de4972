"""Checkpoints of OpenMMLab's self-supervised toolbox, 1.x."""

from collections import OrderedDict

from .checkpoint import Checkpoint, HistoryBuffer, named


def openmmlab(body, draw, rename, junk, *, preprocessor=False):
    """PyTorch's container before 1.6, with the log's own objects beside the tensors."""
    tensors, sources = named(body, lambda name: f"backbone.{rename(name)}")
    tensors |= junk
    if preprocessor:
        tensors |= draw({"mean": (3, 1, 1), "std": (3, 1, 1)}, "data_preprocessor.")
    content = {
        "meta": {
            "epoch": 300,
            "iter": 375300,
            "cfg": "model = dict(type='MAE')\n",
            "seed": 0,
            "experiment_name": "in1k_20221101",
            "time": "20221101_000000",
            "mmengine_version": "0.2.0",
        },
        "state_dict": tensors,
        "message_hub": {
            "log_scalars": OrderedDict(
                {"train/lr": HistoryBuffer(), "train/loss": HistoryBuffer()}
            ),
            "runtime_info": OrderedDict({"iter": 375300, "max_iters": 375300}),
            "resumed_keys": OrderedDict({"iter": True}),
        },
        "param_schedulers": [{"last_step": 375300, "_global_step": 375301}],
    }
    return Checkpoint(content, tensors, sources, container="legacy")
