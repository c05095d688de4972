"""What timm fetches by itself: held to the SHA-256 of the first file that loads."""

import hashlib
import json
import logging
import socket

import pytest
import timm
from huggingface_hub import constants
from safetensors.torch import save
from torch import save as save_pickle

from featstore.errors import BadCheckpointError
from featstore.models import create_backbone, load_model
from featstore.models.checkpoints import weights_sha256

REPOSITORY = "timm/test_vit.r160_in1k"
KEY = f"hub:{REPOSITORY}/model.safetensors"


@pytest.fixture
def cache(new_home, monkeypatch):
    """Puts a file into the hub's cache as its only version, a link beside its content."""
    # The hub's code has read both from the environment, when it was imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(new_home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = new_home / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    for part in ("blobs", "refs", "snapshots/abc"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")

    def put(data, name="model.safetensors"):
        blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        link = folder / "snapshots" / "abc" / name
        link.unlink(missing_ok=True)
        link.symlink_to(f"../../blobs/{blob.name}")
        return blob

    return put


def published(seed, arch="test_vit"):
    """The backbone that a seed draws, with a classifier, as it lies on the hub."""
    head = {
        name: tensor
        for name, tensor in timm.create_model(arch).state_dict().items()
        if name.startswith(("head.", "last_linear."))
    }
    return head | create_backbone(arch, seed=seed).state_dict()


def drawn(seed):
    return weights_sha256(create_backbone("test_vit", seed=seed))


def records(home):
    return json.loads((home / "weights" / "sha256.json").read_text())


def test_a_file_of_the_hub_is_recorded_when_it_first_loads_and_held_to(cache, new_home, caplog):
    first, other = save(published(1)), save(published(2))
    cache(first)
    with caplog.at_level(logging.WARNING, "featstore"):
        for _ in range(2):
            assert load_model("timm:test_vit").weights == drawn(1)
    assert [KEY in records(new_home), len(caplog.records)] == [True, 1]  # said once
    assert records(new_home)[KEY]["sha256"] == hashlib.sha256(first).hexdigest()

    blob = cache(other)
    for _ in range(2):  # refusing does not record
        with pytest.raises(BadCheckpointError) as caught:
            load_model("timm:test_vit")
        for part in (str(blob), blob.name, "first sight", f"remove {KEY} from sha256.json"):
            assert part in str(caught.value)
    cache(first)
    load_model("timm:test_vit.r160_in1k")  # the same file by its full name


@pytest.mark.parametrize("lost", ["blocks.3.attn.qkv.weight", "norm.bias"])
def test_a_file_that_lacks_a_tensor_is_refused_and_not_recorded(cache, new_home, lost):
    state = published(1)
    del state[lost]
    cache(save(state))
    with pytest.raises(BadCheckpointError, match=f"timm:test_vit .*Missing.*{lost}") as caught:
        load_model("timm:test_vit")
    assert "\n" not in str(caught.value)
    assert not (new_home / "weights").exists()


def test_of_two_files_the_one_that_timm_takes_is_recorded(cache, new_home, tmp_path):
    save_pickle(published(2), tmp_path / "w.bin")
    cache((tmp_path / "w.bin").read_bytes(), "pytorch_model.bin")
    load_model("timm:test_vit")
    assert [*records(new_home)] == [f"hub:{REPOSITORY}/pytorch_model.bin"]
    cache(save(published(1)))
    assert load_model("timm:test_vit").weights == drawn(1)
    assert [*records(new_home)] == [KEY, f"hub:{REPOSITORY}/pytorch_model.bin"]


def test_a_file_from_an_address_is_held_to_as_well(new_home, monkeypatch):
    arch = "legacy_seresnet18.in1k"
    url = timm.get_pretrained_cfg(arch).url
    monkeypatch.setenv("TORCH_HOME", str(new_home))
    path = new_home / "hub" / "checkpoints" / url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    for seed in (1, 2):
        save_pickle(published(seed, arch), path)
        if seed == 1:
            load_model(f"timm:{arch}")
            assert records(new_home)[url]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(BadCheckpointError, match="not the file that it should be"):
        load_model(f"timm:{arch}")


def test_a_hub_that_does_not_answer_is_asked_once_and_named(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with socket.socket() as silent:  # bound and not listening: refuses
        silent.bind(("127.0.0.1", 0))
        hub = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", hub)
        with pytest.raises(BadCheckpointError) as caught:
            load_model("timm:test_vit")
    assert f"(not in the cache, and {hub} cannot be reached: " in str(caught.value)
    assert capfd.readouterr().err == ""  # none of the library's retries
