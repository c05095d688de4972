"""Places of the user's, wherever they are said to be."""

import pytest

from featstore.datasets import load_dataset
from featstore.home import expanded, home
from featstore.models import expand, load_model


def test_a_tilde_is_the_users_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/x") == tmp_path / "x"
    assert expanded("x/~y") == expanded("x/~y").relative_to(".")


@pytest.mark.parametrize(
    "use",
    [
        lambda path: load_dataset(f"folder:{path}"),
        lambda path: load_dataset(f"wds:{path}.tar"),
        lambda path: load_dataset(f"hf:{path}"),
        lambda path: load_dataset("cifar10", data_root=path),
        lambda path: expand([f"file:{path}/*.pt#arch=resnet18"]),
        lambda path: load_model(f"file:{path}#arch=test_vit"),
        lambda path: load_model("timm:test_vit", weights=path),
    ],
)
def test_the_home_of_a_user_who_does_not_exist_is_refused_in_one_line(use):
    with pytest.raises(ValueError, match="no home folder of that user is known"):
        use("~nobody-of-that-name/x")


def test_the_home_of_featstore_too(monkeypatch):
    monkeypatch.setenv("FEATSTORE_HOME", "~nobody-of-that-name/x")
    with pytest.raises(ValueError, match="no home folder of that user is known"):
        home()
