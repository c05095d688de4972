"""Models made by the user's own code."""

import sys

import pytest
import torch

from featstore.errors import BadCheckpointError, UnknownNameError
from featstore.models import load_model
from featstore.models.own import make

CODE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 7, stride=7)
        self.norm = torch.nn.BatchNorm2d(5)

    def forward(self, x):
        return self.norm(self.conv(x)).mean(dim=(2, 3))

def net():
    torch.manual_seed(3)
    return Net()

def broken():
    raise RuntimeError("no such file: weights.pt")

def leaving():
    raise SystemExit(3)

def nothing():
    return None

number = 7
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    (tmp_path / "mymodels.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("mymodels", None)


@pytest.mark.usefixtures("code")
def test_a_factory_in_the_current_folder_makes_a_model_with_its_weights():
    model = load_model("py:mymodels:net")
    torch.manual_seed(3)
    assert torch.equal(model.module.conv.weight, torch.nn.Conv2d(3, 5, 7, stride=7).weight)
    assert model.name == "py:mymodels:net"
    assert not model.module.training
    assert not model.bn_free
    assert model.info["lineage"] == "py:mymodels:net"
    assert model.data_config["input_size"] == (3, 224, 224)
    assert str(model.weights) == load_model("py:mymodels:net").weights
    assert sys.path[0] != ""  # the search path is as it was


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("py:mymodels", UnknownNameError, "py:mymodels names no factory. Write py:MODULE:FACTORY"),
        ("py:yourmodels:net", UnknownNameError, "yourmodels cannot be imported"),
        ("py:mymodels:ner", UnknownNameError, "mymodels has no function ner"),
        ("py:mymodels:number", UnknownNameError, "mymodels has no function number"),
        ("py:mymodels:broken", BadCheckpointError, "RuntimeError: no such file: weights.pt"),
        ("py:mymodels:leaving", BadCheckpointError, "failed: SystemExit: 3"),
        ("py:mymodels:nothing", BadCheckpointError, "returned NoneType, not an nn.Module"),
    ],
)
def test_what_makes_no_model_is_refused_in_one_line(name, error, said):
    with pytest.raises(error) as caught:
        make(name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
