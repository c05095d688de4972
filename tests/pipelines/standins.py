"""Tiny networks under the studies' own names, and catalogues that expect no published counts.

    python tests/pipelines/standins.py SCRIPT [ARGUMENT ...]

runs a script so. The networks are timm's, of its own code, with a sixteenth of a ResNet-50's
channels and two narrow blocks of a transformer: names, files and rules stay those of the originals.
"""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

from timm.models import beit, convnext, resnet, vision_transformer
from torch import nn
from torchvision.datasets import Flowers102

from featstore import datasets, models
from featstore.models import tiny  # noqa: F401 - built of timm's classes before they are replaced

WIDTH = {"embed_dim": 24, "num_heads": 2}
DEPTH = 2
CHANNELS = (4, 8, 16, 32)


class ResNet(resnet.ResNet):
    """As timm's, with few channels, in the stem as well."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options | {"channels": CHANNELS})
        self.conv1 = nn.Conv2d(3, CHANNELS[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS[0])
        first = self.layer1[0]
        first.conv1 = nn.Conv2d(CHANNELS[0], CHANNELS[0], 1, bias=False)
        first.downsample[0] = nn.Conv2d(CHANNELS[0], 4 * CHANNELS[0], 1, bias=False)


class VisionTransformer(vision_transformer.VisionTransformer):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options | WIDTH | {"depth": DEPTH})


class Beit(beit.Beit):
    """Its rules name all twelve blocks."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options | WIDTH)


class ConvNeXt(convnext.ConvNeXt):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options | {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)})


def install(set_attribute=setattr, set_item=dict.__setitem__):
    """Put the stand-ins in place, in this process."""
    for module, kind in ((resnet, ResNet), (vision_transformer, VisionTransformer),
                         (beit, Beit), (convnext, ConvNeXt)):  # fmt: skip
        set_attribute(module, kind.__name__, kind)
    # No made-up file has a published SHA-256, and no miniature as many images and categories.
    for name, entry in models.catalogue().items():
        set_item(models.catalogue(), name, replace(entry, sha256=""))
    for name, entry in datasets.catalogue().items():
        set_item(datasets.catalogue(), name, replace(entry, categories=0, n_images={}))
    files = {kind: (file, None) for kind, (file, _) in Flowers102._file_dict.items()}  # their MD5
    set_attribute(Flowers102, "_file_dict", files)


if __name__ == "__main__":
    install()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
