"""Original checkpoints of the catalogue's models, made up key for key but not in their values.

Written as the way back, from a module's name of a tensor to the name its authors gave it, so that
they share nothing with the rules that featstore reads such files by.
"""

from functools import partial

from . import haiku, resnets, vits
from .checkpoint import Checkpoint
from .references import embedding
from .shapes import Draw, beit_b16, noise, resnet50, vit_b16

ENCODERS = {"resnet50": resnet50, "vitb16": vit_b16, "beit": beit_b16}

LAYOUTS = {
    "jigsaw-resnet50": partial(resnets.vissl, method="jigsaw"),
    "rotnet-resnet50": partial(resnets.vissl, method="rotnet"),
    "npid-resnet50": resnets.npid,
    "sela-v2-resnet50": partial(resnets.swav, prototypes=[f"prototypes{i}." for i in range(4)]),
    "npid-pp-resnet50": partial(resnets.vissl, method="npid-pp"),
    "pirl-resnet50": partial(resnets.vissl, method="pirl"),
    "clusterfit-resnet50": partial(resnets.vissl, method="clusterfit"),
    "deepcluster-v2-resnet50": partial(
        resnets.swav, prototypes=[f"prototypes{i}." for i in range(3)]
    ),
    "swav-resnet50": partial(resnets.swav, prototypes=[""]),
    "simclr-resnet50": partial(resnets.vissl, method="simclr"),
    "moco-v2-resnet50": partial(resnets.moco, hidden=True),
    "simsiam-resnet50": resnets.simsiam,
    "byol-resnet50": resnets.byol,
    "dino-resnet50": resnets.bare,
    "barlowtwins-resnet50": resnets.barlow_twins,
    "densecl-resnet50": resnets.densecl,
    "moco-v3-resnet50-momentum": partial(resnets.moco_v3, encoder="momentum"),
    "moco-v3-resnet50": partial(resnets.moco_v3, encoder="base"),
    "dino-vitb16": vits.dino,
    "ibot-vitb16": vits.ibot,
    "moco-v3-vitb16-momentum": partial(vits.moco_v3, encoder="momentum"),
    "moco-v3-vitb16": partial(vits.moco_v3, encoder="base"),
    "mae-vitb16": vits.mae,
    "maskfeat-vitb16": vits.maskfeat,
    "beitv2-vitb16": partial(vits.beitv2, final="B"),
    "beitv2-vitb16-norm": partial(vits.beitv2, final="A"),
    "beitv2-vitb16-cls": partial(vits.beitv2, final="C"),
    "milan-vitb16": vits.milan,
    "eva-vitb16": vits.eva,
    "pixmim-vitb16": vits.pixmim,
    "insdis-resnet50": partial(resnets.pycontrast, method="insdis"),
    "moco-v1-resnet50": partial(resnets.moco, hidden=False),
    "pcl-v1-resnet50": partial(resnets.moco, hidden=False, negatives=16384),
    "pirl-pycontrast-resnet50": partial(resnets.pycontrast, method="pirl"),
    "pcl-v2-resnet50": partial(resnets.moco, hidden=True, negatives=16384),
    "simclr-v1-resnet50": resnets.simclr_v1,
    "simclr-v2-resnet50": resnets.simclr_v2,
    "infomin-resnet50": partial(resnets.pycontrast, method="infomin"),
    "byol-deepmind-resnet50": haiku.byol_deepmind,
    "supervised-resnet50": partial(resnets.bare, classifier=True),
}


def make(name, *, random=False, **form) -> Checkpoint:
    """The file of a catalogue entry, in one `form` of those its authors wrote.

    Each tensor has one value, or those of the encoder are `random`.
    """
    kind = "beit" if name.startswith("beit") else "vitb16" if "vitb16" in name else "resnet50"
    draw, shapes = Draw(), ENCODERS[kind]()
    return LAYOUTS[name](noise(shapes) if random else draw(shapes), draw, **form)


__all__ = ["ENCODERS", "LAYOUTS", "Checkpoint", "Draw", "embedding", "make", "noise"]
