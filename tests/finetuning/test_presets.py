"""Every published number of both studies' trainings, to the digits that are given."""

import pytest

from featstore import probes
from featstore.errors import UnknownNameError
from featstore.finetuning import PROTOCOLS, expand, get
from featstore.finetuning.optimise import length, rate_factor


def factors(name, steps, per_epoch=1):
    return [rate_factor(get(name), step, per_epoch) for step in steps]


@pytest.mark.parametrize(
    "name", ["finetune-marks", "linear-marks", "linear-marks-literal", "linear-marks-mlp-bn"]
)
def test_marks_rate_warms_up_over_five_epochs_then_falls_by_a_cosine(name):
    published = [0.1667, 0.3333, 0.5, 0.6667, 0.8333, 1]
    assert factors(name, range(6)) == pytest.approx(published, abs=5e-5)
    assert factors(name, [50, 99]) == pytest.approx([0.54129, 0.00027], abs=5e-6)
    # the same at each step of an epoch
    assert factors(name, range(350, 357), per_epoch=7) == pytest.approx([0.54129] * 7, abs=5e-6)
    assert length(get(name), 7) == 700


@pytest.mark.parametrize(
    ("setup", "ten", "one"),
    [
        ("swav", (0.01, 0.2, 20), (0.02, 5.0, 20)),
        ("barlowtwins", (0.5, 0.005, 20), (0.5, 0.005, 20)),
        ("byol1", (0.01, 0.01, 30), (0.01, 0.01, 30)),
        ("byol2", (0.1, 0.1, 30), (0.1, 0.1, 30)),
    ],
)
def test_few_shot_rates_and_lengths(setup, ten, one):
    for percent, published in ((10, ten), (1, one)):
        name = f"finetune{percent}-marks-{setup}"
        protocol = get(name)
        (candidate,) = protocol.candidates()
        assert (*candidate[:3], protocol.epochs) == (*published[:2], 0.0, published[2])
        assert protocol.fraction == percent / 100
        epochs = published[2]
        found = factors(name, [0, epochs // 2, epochs - 1])
        last = {20: 0.006156, 30: 0.002739}[epochs]
        assert found == pytest.approx([1, 0.5, last], abs=5e-7)  # plain cosine, no warm-up


def test_marks_settings():
    for name, protocol in PROTOCOLS.items():
        if "marks" in name:
            assert (protocol.momentum, protocol.clip, protocol.subset_seed) == (0.9, 0.5, 42)
            assert not protocol.nesterov
            assert protocol.head_std == 0.01
            linear = name.startswith("linear")
            assert protocol.batch_size == (1024 if linear else 256)
            vit = (protocol.layer_decay, protocol.label_smoothing, protocol.drop_path)
            assert vit == ((1, 0, 0) if linear else (0.65, 0.1, 0.2))
            assert protocol.kind == ("linear" if linear else "finetune")
            assert protocol.trained is not linear
    assert get("finetune-marks").candidates() == [(0.1, 0.1, 0, "random")]
    assert get("finetune-marks+batch_size=512").candidates() == [(0.2, 0.2, 0, "random")]
    assert get("linear-marks").candidates() == [(0.4, 0.4, 0, "random")]
    assert get("linear-marks").backbone_bn == "frozen"
    assert get("linear-marks-literal").backbone_bn == "train"


@pytest.mark.parametrize("ending", ["", "-bn"])
@pytest.mark.parametrize("form", ["", "-literal"])
def test_a_small_network_is_what_its_linear_twin_is_but_for_the_head(form, ending):
    linear, mlp = get(f"linear-marks{form}{ending}"), get(f"linear-marks{form}-mlp{ending}")
    assert mlp.computed == linear.computed | {"head": "mlp"}
    assert (mlp.hidden, mlp.sets) == (1000, ("marks2024",))
    off_store = probes.get(f"linear-marks-1view-mlp{ending}").settings()
    alike = ("epochs", "batch_size", "momentum", "weight_decay", "warmup", "clip", "head",
             "hidden", "normalisation", "kind")  # fmt: skip
    assert {name: mlp.settings()[name] for name in alike} == {n: off_store[n] for n in alike}
    assert mlp.candidates()[0].lr == off_store["lr_per_256"] * 1024 / 256


def test_ericsson_grid_has_twenty_pairs_with_decay_over_rate_and_two_crops():
    protocol = get("finetune-ericsson")
    tried = protocol.candidates()
    assert len(tried) == 40
    assert [one.crop for one in tried] == ["random"] * 20 + ["centre"] * 20
    decays = {
        0.1: [0, 1e-5, 1e-4, 1e-3, 1e-2],
        0.01: [0, 1e-4, 1e-3, 1e-2, 1e-1],
        0.001: [0, 1e-3, 1e-2, 1e-1, 1],
        0.0001: [0, 1e-2, 1e-1, 1, 10],
    }
    expected = [(lr, lr, decay) for lr, of in decays.items() for decay in of]
    for half in (tried[:20], tried[20:]):
        for found, published in zip(half, expected, strict=True):
            assert found[:3] == pytest.approx(published)
    assert (protocol.batch_size, protocol.momentum, protocol.nesterov) == (64, 0.9, True)
    assert (protocol.clip, protocol.held_out, length(protocol, 7)) == (0, 0.2, 5000)
    falling = factors("finetune-ericsson", [0, 2500, 4999], per_epoch=7)
    assert falling == pytest.approx([1, 0.5, 9.87e-8], abs=1e-10)


def test_each_has_a_twin_with_a_final_batch_norm():
    plain = {name for name in PROTOCOLS if not name.endswith("-bn")}
    assert set(PROTOCOLS) == plain | {f"{name}-bn" for name in plain}
    for name in plain:
        assert get(name).normalisation == "none"
        assert get(f"{name}-bn").normalisation == "bn"
        assert get(f"{name}-bn").computed == get(name).computed | {"normalisation": "bn"}


def test_a_changed_setting_is_another_name():
    assert get("finetune-marks+epochs=3").epochs == 3
    assert get("finetune-marks+epochs=3").name == "finetune-marks+epochs=3"
    stepped = get("finetune-marks+steps=9")
    assert (stepped.steps, stepped.epochs) == (9, 0)
    assert get("finetune-ericsson+epochs=2").steps == 0
    assert get("finetune-ericsson+lrs=0.1+decays=0,0.5").candidates()[1][2] == 5
    named = expand(["tiny"], epochs=2, fraction=0.5, steps=None)
    assert "finetune-tiny-bn+epochs=2+fraction=0.5" in named
    assert len(named) == 4
    assert expand(["finetune-marks"], epochs=100000) == ["finetune-marks+epochs=100000"]


@pytest.mark.parametrize(
    ("name", "warmup"),
    [
        ("finetune-tiny+epochs=1", 0),  # 4 of 40 steps
        ("finetune-tiny+epochs=20", 2),
        ("finetune-tiny+steps=200", 20),
        ("finetune-marks+epochs=3", 0),  # 5 of 100 epochs
        ("finetune-marks+epochs=100", 5),
        ("finetune-marks+steps=2000", 100),
        ("linear-marks-bn+epochs=50+lr=3", 2),
        ("finetune-marks+epochs=20+warmup=5", 5),
        ("finetune-marks+warmup=7+steps=20", 7),
        ("finetune-marks+lr=3", 5),
        ("finetune10-marks-byol2+epochs=300", 0),
        ("finetune-ericsson+epochs=9", 0),
    ],
)
def test_warm_up_keeps_its_share_of_another_length_unless_it_is_given(name, warmup):
    protocol = get(name)
    assert protocol.warmup == warmup
    per_epoch = 4
    total = length(protocol, per_epoch)
    factors = [rate_factor(protocol, step, per_epoch) for step in range(total)]
    warm = warmup * (1 if protocol.steps else per_epoch)
    assert max(factors) == factors[warm] == 1
    assert max(factors[:warm], default=0) < 1
    assert factors[-1] == min(factors[warm:])


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("finetune-marks+epochs=3+warmup=3", "shorter than the training, got 3 of 3 epochs"),
        ("finetune-tiny+steps=5+warmup=6", "shorter than the training, got 6 of 5 steps"),
        ("finetune-marks+warmup=100", "got 100 of 100 epochs"),
        ("finetune-marks+epochs=-9", "give epochs or steps"),
        ("finetune-mark", "finetune-marks"),
        ("finetune-marks+speed=3", "has no setting 'speed'"),
        ("finetune-marks+name=x", "has no setting 'name'"),
        ("finetune-marks+epochs=many", "must be like 100"),
        ("finetune-marks+epochs=3+steps=3", "give epochs or steps"),
        ("finetune-marks+epochs=0", "give epochs or steps"),
        ("finetune-marks+fraction=0", "fraction must lie in 0..1"),
        ("finetune-marks+crop=left", "crop must be one of random, centre, chosen, got 'left'"),
        ("finetune-marks+backbone_bn=no", "backbone_bn must be one of train, frozen, got 'no'"),
        ("finetune-marks+lr=-1", "rates are above 0"),
        ("finetune-marks+lrs=0.1", "belong together"),
        ("finetune-marks+normalisation=l2", "none or bn"),
        ("finetune-marks+batch_size=1", "batch_size must be at least 2"),
        ("finetune-marks+layer_decay=0", "layer_decay must lie"),
        ("finetune-marks+drop_path=1", "below 1"),
        ("linear-marks+head=deep", "head must be one of linear, mlp"),
        ("linear-marks-mlp+hidden=0", "hidden at least 1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(name, fault):
    with pytest.raises(UnknownNameError, match=fault):
        get(name)


@pytest.mark.parametrize(
    ("name", "slower"),
    [
        ("finetune-marks", "finetune-marks+lr=0.01"),
        ("finetune-tiny+lr=1e9+steps=30", "finetune-tiny+steps=30+lr=1e08"),
    ],
)
def test_the_name_at_a_tenth_of_the_rate_is_one_that_is_taken(name, slower):
    assert get(name).slower == slower
    assert get(slower).lr == get(name).lr / 10


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("finetune-marks", 100 * 50_000),
        ("linear-marks-literal-bn", 100 * 50_000),
        ("finetune10-marks-swav", 20 * 5_000),
        ("finetune1-marks-byol2", 30 * 500),
        ("finetune-ericsson", (20 * 2 + 1) * 5_000 * 64),
    ],
)
def test_images_through_the_network_are_those_of_all_trainings(name, images):
    assert get(name).images(50_000) == images
