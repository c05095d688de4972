"""ResNet-50 checkpoints in the layouts of the codes that wrote them."""

import re

from .checkpoint import Checkpoint, named
from .openmmlab import openmmlab
from .shapes import SCALER, affine, batch_norm, resnet50

MEMORY = {
    "nce_average.memory": (1281167, 128),
    "nce_average.params": (4,),
    "nce_average.multinomial.prob": (1281167,),
    "nce_average.multinomial.alias": (1281167,),
}
HEADS = {
    "jigsaw": affine("0.clf.0", 1000, 2048)
    | batch_norm("0.clf.1", 1000)
    | affine("2.clf.0", 100, 9000),
    "rotnet": affine("0.clf.0", 4, 2048),
    "npid-pp": affine("0.clf.0", 128, 2048),
    "pirl": affine("0.0.clf.0", 128, 2048)
    | affine("0.2.clf.0", 128, 1152)
    | affine("1.0.clf.0", 128, 2048),
    "simclr": affine("0.clf.0", 2048, 2048) | affine("1.clf.0", 128, 2048),
    "clusterfit": affine("0.clf.0", 16000, 2048),
}
CLASSIFIER = affine("fc", 1000, 2048)


def vissl(body, draw, method, *, deeper=""):
    """The trunk lies deep, beside its heads; `deeper` is a further prefix of its names."""
    tensors, sources = named(body, lambda name: f"{deeper}_feature_blocks.{name}")
    heads = draw(HEADS[method])
    loss = draw(MEMORY) if method in ("npid-pp", "pirl") else {}
    model = {"trunk": tensors, "heads": heads}
    state = {
        "train": True,
        "base_model": {"model": model, "meta": {"trunk": {}, "heads": []}},
        "meters": {"accuracy_list_meter": {"top_k": [1, 5]}},
        "optimizer": {"optim": draw.optimizer(64, 3, 7, 7)},
        "phase_idx": 104,
        "train_phase_idx": 104,
        "num_updates": 131355,
        "losses": [6.9, 6.5],
        "hooks": [{"name": "log"}],
        "loss": loss,
    }
    content = {
        "phase_idx": 104,
        "iteration": 131355,
        "loss": loss,
        "iteration_num": 1250,
        "train_phase_idx": 104,
        "classy_state_dict": state,
        "type": "consolidated",
    }
    return Checkpoint(content, tensors, sources)


def npid(body, draw):
    """Arrays of numpy instead of tensors."""
    tensors, sources = named(body, lambda name: f"_feature_blocks.{name}")
    tensors |= draw(affine("fc", 128, 2048))
    tensors = {name: tensor.numpy() for name, tensor in tensors.items()}
    return Checkpoint({"model_state_dict": tensors}, tensors, sources, container="legacy")


def swav(body, draw, prototypes, *, training=False):
    """Names bare in the file; `prototypes` are the names of their layers."""
    tensors, sources = named(body, lambda name: f"module.{name}")
    junk = affine("projection_head.0", 2048, 2048)
    junk |= batch_norm("projection_head.1", 2048) | affine("projection_head.3", 128, 2048)
    junk |= {f"prototypes.{name}weight": (3000, 128) for name in prototypes}
    tensors |= draw(junk, "module.")
    content = tensors
    if training:
        content = {"epoch": 800, "state_dict": tensors, "optimizer": draw.optimizer(64, 3, 7, 7)}
    return Checkpoint(content, tensors, sources, container="legacy")


def moco(body, draw, *, hidden, negatives=65536, training=False):
    """The query encoder; while training also the key encoder, which is its momentum twin."""
    tensors, sources = named(body, lambda name: f"module.encoder_q.{name}")
    fc = affine("fc.0", 2048, 2048) | affine("fc.2", 128, 2048)
    fc = fc if hidden else affine("fc", 128, 2048)
    tensors |= draw(fc, "module.encoder_q.")
    content = {"epoch": 200, "arch": "resnet50", "state_dict": tensors}
    if training:
        tensors |= draw(resnet50() | fc, "module.encoder_k.")
        tensors |= draw({"queue": (128, negatives), "queue_ptr": (1,)}, "module.")
        content["optimizer"] = draw.optimizer(64, 3, 7, 7)
    return Checkpoint(content, tensors, sources, container="legacy")


def moco_v3(body, draw, encoder):
    """Base and momentum encoder, both whole, each with statistics of its own."""
    other = {"base": "momentum", "momentum": "base"}[encoder]
    tensors, sources = named(body, lambda name: f"module.{encoder}_encoder.{name}")
    fc = {"fc.0.weight": (4096, 2048)} | batch_norm("fc.1", 4096) | {"fc.3.weight": (256, 4096)}
    fc |= batch_norm("fc.4", 256, affine=False)
    tensors |= draw(fc, f"module.{encoder}_encoder.")
    tensors |= draw(resnet50() | fc, f"module.{other}_encoder.")
    predictor = {"0.weight": (4096, 256)} | batch_norm("1", 4096) | {"3.weight": (256, 4096)}
    tensors |= draw(predictor, "module.predictor.")
    content = {"epoch": 1000, "arch": "resnet50", "state_dict": tensors}
    content |= {"optimizer": draw.optimizer(64, 3, 7, 7), "scaler": SCALER}
    return Checkpoint(content, tensors, sources)


def bare(body, draw, *, classifier=False):
    """Torchvision's names with nothing about them."""
    tensors, sources = named(body, lambda name: name)
    tensors |= draw(CLASSIFIER if classifier else {})
    return Checkpoint(tensors, tensors, sources)


def densecl(body, draw):
    tensors, sources = named(body, lambda name: name)
    return Checkpoint({"state_dict": tensors, "author": "DenseCL"}, tensors, sources)


def byol(body, draw):
    """One state dict for each network."""
    tensors, sources = named(body, lambda name: f"module.{name}")
    tensors |= draw(CLASSIFIER, "module.")

    def mlp(into):
        layers = affine("l1", 4096, into) | batch_norm("bn1", 4096) | affine("l2", 256, 4096)
        return draw(layers, "module.")

    content = {
        "config": {"lr": 0.2, "momentum": 0.996},
        "epoch": 300,
        "steps": 93600,
        "online_backbone": tensors,
        "online_projection": mlp(2048),
        "predictor": mlp(256),
        "target_backbone": draw(resnet50() | CLASSIFIER, "module."),
        "target_projection": mlp(2048),
        "optimizer": draw.optimizer(64, 3, 7, 7),
    }
    return Checkpoint(content, tensors, sources)


def simsiam(body, draw, *, preprocessor=False):
    neck = {"fc0.weight": (2048, 2048), "fc1.weight": (2048, 2048), "fc2.weight": (2048, 2048)}
    neck |= batch_norm("bn0", 2048) | batch_norm("bn1", 2048)
    neck |= batch_norm("bn2", 2048, affine=False)
    head = {"predictor.fc0.weight": (512, 2048)} | batch_norm("predictor.bn0", 512)
    head |= affine("predictor.fc1", 2048, 512)
    junk = draw(neck, "neck.") | draw(head, "head.")
    return openmmlab(body, draw, str, junk, preprocessor=preprocessor)


def barlow_twins(body, draw, *, preprocessor=False):
    """Of its projector, 8192 wide, a quarter: it would take 500 MB once converted."""
    neck = {"fc0.weight": (2048, 2048), "fc1.weight": (2048, 2048), "fc2.weight": (2048, 2048)}
    neck |= batch_norm("bn0", 2048) | batch_norm("bn1", 2048)
    head = batch_norm("bn", 2048, affine=False)
    junk = draw(neck, "neck.") | draw(head, "head.")
    return openmmlab(body, draw, str, junk, preprocessor=preprocessor)


def pycontrast(body, draw, method):
    """The encoder beside its heads, a memory bank, and for InfoMin a momentum twin."""
    tensors, sources = named(body, lambda name: f"module.encoder.{name}")
    heads = affine("head.0", 128, 2048)
    memory = {"memory": (1281167, 128)}
    if method == "pirl":
        heads |= affine("head_jig.fc1", 128, 2048) | affine("head_jig.fc2", 128, 1152)
    if method == "infomin":
        heads = affine("head.0", 2048, 2048) | affine("head.2", 128, 2048)
        heads |= affine("head_jig.fc1.0", 2048, 2048) | affine("head_jig.fc1.2", 128, 2048)
        heads |= affine("head_jig.fc2", 128, 1152)
        memory = {"memory": (65536, 128)}
    tensors |= draw(heads, "module.")
    content = {"model": tensors, "contrast": draw(memory), "epoch": 200}
    content["optimizer"] = draw.optimizer(64, 3, 7, 7)
    if method == "infomin":
        encoder = {f"encoder.{name}": shape for name, shape in resnet50().items()}
        content["model_ema"] = draw(encoder | heads, "module.")
    return Checkpoint(content, tensors, sources)


def simclr_v1(body, draw):
    """Converted from TensorFlow: torchvision's names, the shortcut before its block."""
    tensors, sources = named({name: body[name] for name in resnet50(shortcut_first=True)}, str)
    tensors |= draw(CLASSIFIER)
    return Checkpoint({"state_dict": tensors}, tensors, sources)


def simclr_v2(body, draw):
    """Converted from TensorFlow: places in nested sequences for names."""

    def rename(name):
        stage, _, rest = name.partition(".")
        if stage == "conv1":
            return f"net.0.0.{rest}"
        if stage == "bn1":
            return f"net.0.1.0.{rest}"
        number, part, leaf = re.fullmatch(r"(\d)\.(\w+|downsample\.\d)\.(\w+)", rest).groups()
        places = {"conv1": "net.0", "bn1": "net.1.0", "conv2": "net.2", "bn2": "net.3.0"}
        places |= {"conv3": "net.4", "bn3": "net.5.0"}
        places |= {"downsample.0": "projection.shortcut", "downsample.1": "projection.bn.0"}
        return f"net.{stage.removeprefix('layer')}.blocks.{number}.{places[part]}.{leaf}"

    tensors, sources = named(body, rename)
    tensors |= draw(CLASSIFIER)
    head = {f"layers.{place}.weight": (2048, 2048) for place in (0, 3)}
    head |= {"layers.6.weight": (128, 2048)}
    head |= batch_norm("layers.1", 2048) | batch_norm("layers.4", 2048)
    head |= batch_norm("layers.7", 128)
    return Checkpoint({"resnet": tensors, "head": draw(head)}, tensors, sources)
