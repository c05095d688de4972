import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

FOLDER = Path(__file__).parents[2] / "pipelines" / "benchmarks"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: it would be measured")
def test_without_a_gpu_it_says_that_nothing_was_measured():
    script = [sys.executable, FOLDER / "gpu.py", "--small"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "no CUDA GPU with cupy here: nothing was measured\n"


@pytest.mark.parametrize(
    ("name", "ours", "width"),
    [("resnet50", "resnet50", 2048), ("vit_base_patch16_224", "VisionTransformer", 768)],
)
def test_its_backbones_are_of_the_size_of_timms(name, ours, width):
    with torch.device("meta"):
        module = runpy.run_path(str(FOLDER / "backbones.py"))[ours]()
        theirs = timm.create_model(name, num_classes=0)
        assert module(torch.empty(2, 3, 224, 224)).shape == (2, width)
    sizes = [sum(p.numel() for p in each.parameters()) for each in (module, theirs)]
    assert sizes[0] == sizes[1]
