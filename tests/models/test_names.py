"""Model names taken apart and put together, and what comes near to one that does not exist."""

import pytest

from featstore.errors import UnknownNameError
from featstore.models.names import SITES, ModelName, catalogue, expand
from featstore.names import unknown

BASES = [
    "tiny-resnet-simclr",
    "timm:resnet50",
    "timm:vit_base_patch16_224.augreg_in21k_ft_in1k",
    "file:weights.pt#arch=resnet50",
    "file:/data/me@work/a b/run~3/x#1.safetensors#arch=vit_tiny_patch16_224.augreg",
    "file:C@cls~x#arch=o@dd~/w.pt#arch=tiny-vit",
]


@pytest.mark.parametrize("variant", ["", "v2", "random3", "a-b", "a~b", "fp32@work"])
@pytest.mark.parametrize("site", ["", *SITES])
@pytest.mark.parametrize("base", BASES)
def test_a_name_is_taken_apart_and_put_together_again(base, site, variant):
    text = base + (f"@{site}" if site else "") + (f"~{variant}" if variant else "")
    parsed = ModelName.parse(text)
    assert (parsed.base, parsed.site, parsed.variant) == (base, site, variant)
    assert str(parsed) == text


@pytest.mark.parametrize("name", ["timm:resnet50@", "timm:resnet50~", "timm:resnet50@~"])
def test_an_empty_site_or_variant_is_none(name):
    assert str(ModelName.parse(name)) == "timm:resnet50"


@pytest.mark.parametrize(
    "name", ["timm:resnet50@CLS", "tiny-vit-mae@clss~x", "file:a@cls#arch=tiny-vit@patches"]
)
def test_an_unknown_site_is_refused_with_all_there_are(name):
    with pytest.raises(UnknownNameError) as caught:
        ModelName.parse(name)
    assert name in str(caught.value)
    assert "@cls, @avg, @cls+avg, @cls-last4" in str(caught.value)


@pytest.mark.parametrize("name", ["file:weights.pt", "file:a#arc=resnet18", "file:"])
def test_a_file_without_architecture_is_refused_and_the_form_told(name):
    with pytest.raises(UnknownNameError, match=r"says no architecture\. Write file:PATH#arch=NAME"):
        ModelName.parse(name)


def test_variants_add_up():
    name = ModelName.parse("timm:resnet50@avg")
    assert str(name.with_variant("v2")) == "timm:resnet50@avg~v2"
    assert str(name.with_variant("a").with_variant("b")) == "timm:resnet50@avg~a-b"
    assert name.with_variant("") == name


def test_a_set_stands_for_its_members_in_order_and_each_name_comes_once():
    tiny = [name for name, entry in catalogue().items() if "tiny" in entry.sets]
    assert len(tiny) >= 12
    assert expand(["tiny"]) == tiny
    assert expand(["all"]) == [*catalogue()]
    assert expand([tiny[3], "tiny"]) == [tiny[3], *tiny[:3], *tiny[4:]]
    assert expand(["timm:resnet50@avg", tiny[0], "timm:resnet50@avg", "timm:resnet50"]) == [
        "timm:resnet50@avg", tiny[0], "timm:resnet50",
    ]  # fmt: skip
    with pytest.raises(UnknownNameError, match="unknown embedding site @x"):
        expand(["tiny", "timm:resnet50@x"])


def test_no_model_has_the_name_of_a_set_or_a_sign_that_names_use():
    sets = {one for entry in catalogue().values() for one in entry.sets}
    for name in catalogue():
        assert name not in {"all", *sets}
        assert not set(name) & set("@~#:/ ")


def test_an_unknown_name_comes_with_at_most_three_that_are_near_best_first():
    known = ["resnet18", "resnet34", "resnet50", "resnet101", "vit_tiny"]
    assert str(unknown("model", "resnet5", known, "See LIST")) == (
        "unknown model 'resnet5'. Did you mean resnet50 or resnet34 or resnet18? See LIST"
    )
    assert str(unknown("model", "qqq", known, "See LIST")) == "unknown model 'qqq'. See LIST"


def test_a_pattern_stands_for_its_files_in_the_order_of_their_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/epoch10.pt", "runs/epoch9.pt", "runs/last.pt", "runs/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = [f"file:runs/{n}.pt#arch=resnet50@avg" for n in ("epoch9", "epoch10", "last")]
    assert expand(["file:runs/*.pt#arch=resnet50@avg", "file:runs/last.pt#arch=resnet50@avg"]) == (
        expected
    )


def test_a_pattern_that_matches_nothing_is_refused(tmp_path):
    with pytest.raises(UnknownNameError, match=r"no file matches .*\*\.pt. Check the pattern"):
        expand([f"file:{tmp_path}/*.pt#arch=resnet50"])


def test_a_file_whose_name_holds_a_star_is_itself(tmp_path):
    (tmp_path / "a*.pt").touch()
    (tmp_path / "ab.pt").touch()
    name = f"file:{tmp_path}/a*.pt#arch=resnet50"
    assert expand([name]) == [name]
