"""Weights files: every container gives the same weights, and none that is unsafe runs its code."""

import argparse
import copy
import datetime
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from featstore.errors import BadCheckpointError
from featstore.models import create_backbone, load_model
from featstore.models.checkpoints import fill, read_file, tensors_in, weights_sha256
from featstore.models.remap import PLAIN, remap


@pytest.fixture
def resnet():
    return create_backbone("tiny-resnet", seed=1)


@pytest.fixture
def state(resnet):
    return {name: tensor.clone() for name, tensor in resnet.state_dict().items()}


def bare(state):
    return state


def under_state_dict(state):
    return {"state_dict": state, "epoch": 7, "arch": "resnet"}


def under_model(state):
    return {"model": OrderedDict(state), "optimizer": {"lr": 0.1}}


def of_data_parallel(state):
    return {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}


CONTAINERS = [bare, under_state_dict, under_model, of_data_parallel]


def read_state(path):
    state = tensors_in(read_file(path), path)
    return {target: state[source] for target, source in remap(state, PLAIN, path).items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert torch.equal(found[name], expected[name])


@pytest.mark.parametrize("nest", CONTAINERS)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_gives_its_tensors_however_they_are_nested(nest, zipped, state, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(nest(state), path, _use_new_zipfile_serialization=zipped)
    same(read_state(path), state)


def test_a_safetensors_file_gives_its_tensors(state, tmp_path):
    save_file(state, tmp_path / "weights.safetensors")
    same(read_state(tmp_path / "weights.safetensors"), state)


@pytest.mark.parametrize("nest", [*CONTAINERS, None])
def test_a_model_from_a_file_computes_what_the_model_that_was_saved_does(
    nest, resnet, state, tmp_path
):
    path = tmp_path / f"at@sign~tilde#hash.{'pt' if nest else 'safetensors'}"
    torch.save(nest(state), path) if nest else save_file(state, path)
    model = load_model(f"file:{path}#arch=tiny-resnet")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.module(pixels), resnet.eval()(pixels))
    assert model.weights == weights_sha256(resnet)


def test_half_precision_is_cast_to_that_of_the_model(resnet, state, tmp_path):
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(halves, tmp_path / "half.safetensors")
    torch.save(halves, tmp_path / "half.pt")
    loaded = [
        load_model(f"file:{tmp_path}/half.{kind}#arch=tiny-resnet")
        for kind in ("safetensors", "pt")
    ]
    for model in loaded:
        weight = model.module.conv1.weight
        assert weight.dtype == torch.float32
        assert torch.equal(weight, state["conv1.weight"].half().float())
    assert loaded[0].weights == loaded[1].weights != weights_sha256(resnet)


@pytest.mark.parametrize(
    ("arch", "heads"),
    [
        ("test_resnet", ["fc"]),
        ("test_vit", ["head"]),
        ("test_convnext", ["head.fc"]),
        ("test_efficientnet", ["classifier"]),
        ("deit_tiny_distilled_patch16_224", ["head", "head_dist"]),
    ],
)
def test_the_classifier_of_an_architecture_is_left_out_and_nothing_else(arch, heads, tmp_path):
    torch.manual_seed(3)
    whole = timm.create_model(arch, num_classes=10)
    state = whole.state_dict()
    left = {k: v for k, v in state.items() if not k.startswith(tuple(f"{head}." for head in heads))}
    assert len(state) - len(left) == 2 * len(heads)  # weight and bias of each
    torch.save(state, tmp_path / "whole.pt")
    same(load_model(f"file:{tmp_path}/whole.pt#arch={arch}").module.state_dict(), left)


def refusal(path, arch="tiny-resnet"):
    with pytest.raises(BadCheckpointError) as caught:
        load_model(f"file:{path}#arch={arch}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_unexpected_and_reshaped_tensors_are_counted_and_the_first_named(state, tmp_path):
    names = [name for name in state if not name.endswith("num_batches_tracked")]
    for name in names[:5]:
        del state[name]
    for i in range(4):
        state[f"projector.{i}.weight"] = torch.ones(2)
    state[names[7]] = torch.ones(5, 6)
    torch.save(state, tmp_path / "w.pt")
    message = refusal(tmp_path / "w.pt")
    assert f"5 missing: {', '.join(names[:3])}, ...;" in message
    unexpected = ", ".join(f"projector.{i}.weight" for i in range(3))
    assert f"4 unexpected: {unexpected}, ...;" in message
    shape = tuple(create_backbone("tiny-resnet").state_dict()[names[7]].shape)
    assert f"1 of another shape: {names[7]} (5, 6) for {shape}" in message
    assert "do not fit ResNet" in message
    assert "#arch=" in message
    assert names[4] not in message


def test_three_missing_tensors_are_all_named_without_dots(state, tmp_path):
    names = ["conv1.weight", "bn1.weight", "bn1.bias"]
    torch.save({k: v for k, v in state.items() if k not in names}, tmp_path / "w.pt")
    assert f"(3 missing: {', '.join(names)})" in refusal(tmp_path / "w.pt")


def test_the_weights_of_another_architecture_do_not_fit(state, tmp_path):
    torch.save(state, tmp_path / "w.pt")
    message = refusal(tmp_path / "w.pt", arch="tiny-vit")
    assert "missing: cls_token" in message
    assert "unexpected: conv1.weight" in message


def test_a_counter_of_training_steps_need_not_be_there(state, tmp_path):
    kept = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert len(kept) < len(state)
    torch.save(kept, tmp_path / "w.pt")
    same({k: v for k, v in load_model(f"file:{tmp_path}/w.pt#arch=tiny-resnet")
          .module.state_dict().items() if k in kept}, kept)  # fmt: skip


def test_nothing_is_filled_in_when_anything_does_not_fit(resnet, state, tmp_path):
    other = create_backbone("tiny-resnet", seed=2)
    before = weights_sha256(other)
    state["layer4.0.bn2.bias"] = torch.ones(3)
    with pytest.raises(BadCheckpointError, match="1 of another shape: layer4.0.bn2.bias"):
        fill(other, state, tmp_path / "w.pt", heads=())
    assert weights_sha256(other) == before


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert "no weights at" in refusal(tmp_path / "gone.pt")
    assert "no weights at" in refusal(tmp_path)  # a folder


@pytest.mark.parametrize("kind", ["pt", "safetensors", "legacy"])
@pytest.mark.parametrize("keep", [0, 1, 5, 300, 0.5, 0.99])
def test_a_truncated_file_is_refused(kind, keep, state, tmp_path):
    path = tmp_path / f"w.{kind.replace('legacy', 'pth')}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pt")
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    message = refusal(path)
    assert "is damaged, or no weights file" in message
    assert "Delete it, and fetch it again" in message


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(
    "content", [b"<html>404</html>", b"hello world", b"\x89PNG\r\n\x1a\n", bytes(1000)]
)
def test_a_file_that_holds_no_weights_is_refused(suffix, content, tmp_path):
    (tmp_path / f"w.{suffix}").write_bytes(content)
    assert "is damaged, or no weights file" in refusal(tmp_path / f"w.{suffix}")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damage_to_any_byte_raises_nothing_but_the_error_that_names_the_file(kind, tmp_path):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    small = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
    if kind == "safetensors":
        save_file(small, path)
    else:
        torch.save(small, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for turn in range(300):
        broken = bytearray(whole)
        broken[rng.integers(min(400, len(whole)))] = rng.integers(256)
        path.write_bytes(broken if turn % 2 else whole[: rng.integers(len(whole))])
        try:
            read_state(path)
        except BadCheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert all(str(path) in message for message in messages)


class Trap:
    """Creates a file when it is unpickled by a loader that runs what it is told."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("how", ["torch", "pickle", "legacy"])
def test_a_file_that_would_run_code_is_refused_and_did_not(how, protocol, state, tmp_path):
    sprung, path = tmp_path / "sprung", tmp_path / "trap.pt"
    content = {"state_dict": state, "trap": Trap(sprung)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(Trap(sprung), protocol=protocol))
    else:
        zipped = how == "torch"
        torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    message = refusal(path)
    assert "not safe to load" in message or "without running code" in message
    assert message.endswith(f"featstore convert {path}")
    assert not sprung.exists()

    # The trap is a real one: a loader that trusts the file springs it.
    if how == "pickle":
        pickle.loads(path.read_bytes()).close()
    else:
        torch.load(path, weights_only=False)["trap"].close()
    assert sprung.exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"state_dict": {}, "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        ({"a": torch.ones(2), "when": datetime.date(2024, 1, 2)}, "datetime.date"),
    ],
)
def test_what_a_file_holds_besides_tensors_is_named(content, named, tmp_path):
    torch.save(content, tmp_path / "w.pt")
    assert f"besides tensors it holds {named}," in refusal(tmp_path / "w.pt")


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: {"model": model, "epoch": 3}])
def test_of_a_whole_module_its_state_dict_is_asked_for(wrap, tmp_path):
    torch.save(wrap(nn.Linear(2, 2)), tmp_path / "w.pt")
    assert refusal(tmp_path / "w.pt").endswith(
        "w.pt holds a whole torch.nn.modules.linear.Linear, which is code and not only weights. "
        "Where that code is, save model.state_dict() in place of the model"
    )


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_of_a_program_its_state_dict_is_asked_for(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "w.pt")
    assert "is a TorchScript program, which is code. Save its state_dict()" in refusal(
        tmp_path / "w.pt"
    )


@pytest.mark.parametrize(
    "content",
    [torch.ones(3), [torch.ones(3)], {"epoch": 3}, "text", {"a": torch.ones(1), "epoch": 3},
     {"state_dict": {"a": 1}}],
)  # fmt: skip
def test_what_is_no_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "w.pt")
    said = refusal(tmp_path / "w.pt")
    assert "does not hold a state_dict" in said
    assert said.endswith("Save the model's state_dict() to it")


def test_tensors_elsewhere_are_found_and_the_nest_told(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path))
    few, many = {"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1), "c": 3}
    torch.save({"ema": few, "net": {"trunk": many}, "epoch": 3}, tmp_path / "w.pt")
    assert refusal(tmp_path / "w.pt").endswith(
        'Tensors are below net/trunk (2), ema (1): write nest = "net/trunk" in a [models.NAME] of '
        f"{tmp_path}/catalogue.toml"
    )


NESTED = {"epoch": 3, "outer": {"inner": {"a.weight": torch.ones(2)}, "heads": []}, "lr": 0.1}


def test_a_nest_leads_to_the_tensors(tmp_path):
    torch.save(NESTED, tmp_path / "w.pt")
    found = tensors_in(read_file(tmp_path / "w.pt"), tmp_path / "w.pt", nest="outer/inner")
    same(found, {"a.weight": torch.ones(2)})


def test_a_safetensors_file_has_no_nests(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a.weight": torch.ones(2)}, path)
    same(tensors_in(read_file(path), path, nest="outer/inner"), {"a.weight": torch.ones(2)})


@pytest.mark.parametrize(
    ("nest", "said"),
    [
        ("state_dict", "no 'state_dict' at its top, where its tensors should be under state_dict; "
                       "there is epoch, outer, lr."),
        ("outer/trunk", "no 'trunk' below outer, where its tensors should be under outer/trunk; "
                        "there is inner, heads."),
        ("epoch/inner", "no 'inner' below epoch, where its tensors should be under epoch/inner; "
                        "there is one int."),
        ("outer/inner/a.weight", "(named tensors, under outer/inner/a.weight); there is one "),
        ("outer", "does not hold a state_dict (named tensors, under outer); there is inner, heads"),
        ("", "(named tensors, bare or under state_dict or model); there is epoch, outer, lr."),
    ],
)  # fmt: skip
def test_a_wrong_nest_is_refused_with_what_there_is(nest, said, tmp_path):
    path = tmp_path / "w.pt"
    torch.save(NESTED, path)
    with pytest.raises(BadCheckpointError) as caught:
        tensors_in(read_file(path), path, nest=nest)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_fresh_may_be_missing_and_keeps_its_value_and_nothing_else_may(
    resnet, state, tmp_path
):
    taken = ["bn1.weight", "bn1.bias"]
    for name in taken:
        del state[name]
    other = create_backbone("tiny-resnet", seed=2)
    with pytest.raises(BadCheckpointError, match=r"\(1 missing: bn1\.bias\)\. Check the sky"):
        fill(other, state, tmp_path, fresh=taken[:1], check="the sky")
    fill(other, state, tmp_path, fresh=taken)
    assert torch.equal(other.bn1.weight, torch.ones(64))
    assert torch.equal(other.conv1.weight, resnet.conv1.weight)


def test_one_changed_bit_changes_the_hash_of_the_weights(resnet):
    before = weights_sha256(resnet)
    assert len(before) == 64
    for tensor in (resnet.conv1.weight.data, resnet.layer4[0].bn2.running_var):
        bits = tensor.view(torch.int32).flatten()
        bits[5] ^= 1
        assert weights_sha256(resnet) != before
        bits[5] ^= 1
    assert weights_sha256(resnet) == before


def test_the_hash_covers_names_and_shapes_and_types():
    def hashed(**tensors):
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return weights_sha256(module)

    base = hashed(a=torch.zeros(2, 3), b=torch.zeros(0))
    others = [
        hashed(b=torch.zeros(2, 3), a=torch.zeros(0)),
        hashed(a=torch.zeros(3, 2), b=torch.zeros(0)),
        hashed(a=torch.zeros(2, 3, dtype=torch.int32), b=torch.zeros(0)),
        hashed(a=torch.zeros(2, 3)),
        hashed(a=torch.zeros(2, 3), c=torch.zeros(0)),
    ]
    assert len({base, *others}) == 6
    assert hashed(b=torch.zeros(0), a=torch.zeros(2, 3)) == base  # whatever their order
    assert hashed(a=torch.zeros(3, 2).T, b=torch.zeros(0)) == base  # whatever their strides


def test_the_hash_takes_no_count_of_training_steps(resnet):
    other = copy.deepcopy(resnet)
    other.bn1.num_batches_tracked += 100
    assert weights_sha256(other) == weights_sha256(resnet)
