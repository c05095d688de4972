"""Rules from a file's names to a module's, and the catalogue that states them."""

import re
import tomllib
from pathlib import Path

import pytest
import timm

from featstore.errors import BadCheckpointError, CatalogueError
from featstore.models import catalogue
from featstore.models.names import Entry
from featstore.models.remap import PLAIN, fresh, remap
from featstore.names import read_catalogue

FILE = Path("weights.pth")
RULES = tomllib.loads(
    Path(__file__)
    .parents[2]
    .joinpath("featstore/models/catalogue/rules.toml")
    .read_text(encoding="utf-8")
)
STUDIES = {n: e for n, e in catalogue().items() if "resnet50" in n or "vitb16" in n}
STUDIES = {n: e for n, e in STUDIES.items() if "modern" not in e.sets}
MODERN = [n for n, e in catalogue().items() if "modern" in e.sets]


def mapped(names, *rules):
    return remap(names, rules, FILE)


def test_without_rules_every_name_stays():
    assert mapped(["a.weight", "b"]) == {"a.weight": "a.weight", "b": "b"}


def test_keep_leaves_out_what_does_not_match_and_drop_what_does():
    names = ["body.a", "body.b", "head.a"]
    assert mapped(names, r"keep ^body\.") == {"body.a": "body.a", "body.b": "body.b"}
    assert mapped(names, r"drop ^body\.") == {"head.a": "head.a"}


def test_sub_strips_or_replaces_and_knows_groups():
    assert mapped(["net.1.w"], r"sub ^net\. ->") == {"1.w": "net.1.w"}
    assert mapped(["net.1.w"], r"sub   ^net\.  ->  layer") == {"layer1.w": "net.1.w"}
    assert mapped(["net.1.w"], r"sub ^net\.(\d)\. -> layer\1.0.") == {"layer1.0.w": "net.1.w"}


def test_only_the_beginning_of_a_name_is_replaced_and_once():
    rules = (r"sub ^module\. ->",)
    names = ["module.module.a", "b.module.c", "module.d", "xmodule.e"]
    assert list(mapped(names, *rules)) == ["module.a", "b.module.c", "d", "xmodule.e"]


def test_a_choice_is_anchored_in_all_of_its_branches():
    assert list(mapped(["a.b", "b.c", "c.b.d"], r"drop ^a\.|b\.")) == ["c.b.d"]


def test_rules_hold_in_their_order():
    names = ["fc.w", "module.fc.w"]
    strip, drop = r"sub ^module\. ->", r"drop ^fc\."
    assert mapped(names, strip, drop) == {}
    assert mapped(names, drop, strip) == {"fc.w": "module.fc.w"}


def test_the_order_of_the_file_is_kept():
    names = ["c", "a", "b"]
    assert list(mapped(names, r"sub ^ -> x.")) == ["x.c", "x.a", "x.b"]


def test_copy_gives_one_tensor_many_names_and_none_of_its_own():
    found = mapped(["bias.table", "bias.table2"], "copy bias.table -> a.{0..2}.t b")
    assert found == {
        "a.0.t": "bias.table", "a.1.t": "bias.table", "a.2.t": "bias.table", "b": "bias.table",
        "bias.table2": "bias.table2",
    }  # fmt: skip


def test_copies_meet_the_rules_that_follow():
    assert list(mapped(["t"], "copy t -> a.{9..11}", r"drop ^a\.10$")) == ["a.9", "a.11"]
    assert list(mapped(["t"], "copy t -> {0..1}.{2..3}")) == ["0.2", "0.3", "1.2", "1.3"]


def test_fresh_names_what_may_keep_its_value_and_maps_nothing():
    rules = (r"fresh ^fc_norm\.",)
    assert mapped(["fc_norm.weight", "a"], *rules) == {"fc_norm.weight": "fc_norm.weight", "a": "a"}
    names = ["fc_norm.weight", "fc_norm.bias", "norm.weight", "x.fc_norm.bias"]
    assert fresh(names, rules) == ["fc_norm.weight", "fc_norm.bias"]
    assert fresh(names, PLAIN) == []


def test_use_stands_for_rules_that_are_shared():
    names = ["_feature_blocks.conv1.weight", "fc.bias"]
    assert mapped(names, "use vissl", r"drop ^fc") == {
        "conv1.weight": "_feature_blocks.conv1.weight"
    }


def test_two_sources_of_one_target_are_an_error_that_names_both_and_the_file():
    with pytest.raises(BadCheckpointError) as caught:
        mapped(["a.w", "b", "module.a.w"], r"sub ^module\. ->")
    assert str(caught.value).startswith("weights.pth: both a.w and module.a.w become a.w.")
    assert "\n" not in str(caught.value)
    with pytest.raises(BadCheckpointError, match=r"both a\.1 and t become a\.1"):
        mapped(["a.1", "t"], "copy t -> a.{0..2}")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("strip ^a", "there is no 'strip', only keep, drop, sub, copy, fresh, use"),
        ("", "there is no ''"),
        ("Keep ^a", "there is no 'Keep'"),
        ("keep", "does not read keep REGEX"),
        ("keep   ", "does not read keep REGEX"),
        ("drop ^a -> b", "does not read drop REGEX"),
        (r"sub ^a\.", "does not read sub REGEX -> REPLACEMENT"),
        ("sub -> b", "does not read sub REGEX -> REPLACEMENT"),
        ("copy a", "does not read copy NAME -> NAME NAME .."),
        ("copy a ->", "does not read copy NAME -> NAME NAME .."),
        ("copy a b -> c", "does not read copy NAME -> NAME NAME .."),
        ("drop a", "must begin with ^"),
        (r"sub \.ln1\. -> .norm1.", "must begin with ^"),
        ("fresh fc_norm", "must begin with ^"),
        ("keep ^(a", "is no regular expression"),
        (r"sub ^a -> \1", "is no regular expression"),
        ("use nobody", "there are the rules vissl, "),
    ],
)
def test_a_rule_that_cannot_be_understood_is_refused_in_one_line(rule, said):
    for call in (lambda: mapped(["a"], rule), lambda: fresh(["a"], [rule])):
        with pytest.raises(CatalogueError) as caught:
            call()
        assert said in str(caught.value)
        assert f"rule {rule!r}" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_rules_that_are_no_texts_are_refused():
    with pytest.raises(CatalogueError, match="rule 3"):
        mapped(["a"], 3)


# What the published loaders of these files do, one by one.
@pytest.mark.parametrize(
    ("rules", "source", "target"),
    [
        ("mmselfsup-vit", "backbone.ln1.weight", "norm.weight"),
        ("mmselfsup-vit", "backbone.layers.11.ln1.bias", "blocks.11.norm1.bias"),
        ("mmselfsup-vit", "backbone.layers.0.ffn.layers.0.0.bias", "blocks.0.mlp.fc1.bias"),
        ("mmselfsup-vit", "backbone.layers.0.ffn.layers.1.weight", "blocks.0.mlp.fc2.weight"),
        ("mmselfsup-vit", "backbone.patch_embed.projection.bias", "patch_embed.proj.bias"),
        ("mmselfsup-vit", "backbone.mask_token", None),
        ("mmselfsup-vit", "neck.decoder_blocks.0.ln1.weight", None),
        ("simclr-v2", "net.0.0.weight", "conv1.weight"),
        ("simclr-v2", "net.0.1.0.running_var", "bn1.running_var"),
        ("simclr-v2", "net.4.blocks.2.net.5.0.bias", "layer4.2.bn3.bias"),
        ("simclr-v2", "net.1.blocks.0.projection.bn.0.bias", "layer1.0.downsample.1.bias"),
        ("simclr-v2", "net.1.blocks.0.net.0.weight", "layer1.0.conv1.weight"),
        ("moco", "module.encoder_k.conv1.weight", None),
        ("moco", "module.encoder_q.fc.0.weight", None),
        ("moco", "module.queue_ptr", None),
        ("moco-v3-base", "module.momentum_encoder.cls_token", None),
        ("moco-v3-momentum", "module.momentum_encoder.cls_token", "cls_token"),
        ("moco-v3-momentum", "module.momentum_encoder.head.7.running_mean", None),
        ("moco-v3-momentum", "module.predictor.0.weight", None),
        ("mae", "mask_token", None),
        ("mae", "decoder_pos_embed", None),
        ("beitv2", "rel_pos_bias.relative_position_index", None),
        ("beitv2", "cls_pt_layers.1.gamma_2", None),
        ("deepcluster", "module.prototypes.prototypes2.weight", None),
        ("pycontrast", "module.head_jig.fc1.weight", None),
    ],
)
def test_shared_rules_say_what_becomes_of_a_name(rules, source, target):
    found = mapped([source], f"use {rules}")
    assert found == ({target: source} if target else {})


@pytest.mark.parametrize("name", RULES)
def test_shared_rules_are_understood_and_used(name):
    assert mapped([], f"use {name}") == {}
    used = {rule for entry in catalogue().values() for rule in entry.rules}
    used |= {rule for rules in RULES.values() for rule in rules}
    assert f"use {name}" in used


@pytest.mark.parametrize("name", STUDIES)
def test_the_rules_of_an_entry_are_understood(name):
    mapped([], *STUDIES[name].rules)
    fresh([], STUDIES[name].rules)
    for rule in STUDIES[name].rules:
        verb, _, rest = rule.partition(" ")
        if verb in ("keep", "drop", "sub", "fresh"):
            assert rest.startswith("^")
            re.compile(rest.partition(" ->")[0])


def test_only_one_model_keeps_initial_values():
    free = [n for n, e in catalogue().items() if any(r.startswith("fresh") for r in e.rules)]
    assert free == ["beitv2-vitb16"]


def members(name):
    return [n for n, entry in catalogue().items() if name in entry.sets]


def test_the_studies_have_as_many_models_as_they_say():
    assert (len(members("marks2024")), len(members("ericsson2021"))) == (26, 14)
    assert len(MODERN) == 44
    assert len(STUDIES) == 26 + 10 + 4
    shared = {"sela-v2-resnet50", "deepcluster-v2-resnet50", "swav-resnet50", "moco-v2-resnet50"}
    assert {*members("marks2024")} & {*members("ericsson2021")} == shared
    in_none = [n for n in STUDIES if not STUDIES[n].sets]
    assert in_none == [
        "moco-v3-resnet50", "moco-v3-vitb16", "beitv2-vitb16-norm", "beitv2-vitb16-cls",
    ]  # fmt: skip


def test_the_2024_study_has_17_resnets_and_9_vits_of_which_6_are_generative():
    entries = [catalogue()[n] for n in members("marks2024")]
    kinds = [(entry.backbone, entry.paradigm) for entry in entries]
    assert kinds.count(("resnet50", "discriminative")) == 17
    assert kinds.count(("vitb16", "discriminative")) == 3
    assert kinds.count(("vitb16", "generative")) == 6


def test_models_whose_targets_are_clips_are_marked_and_those_trained_with_captions_are_not():
    taught = {name for name, entry in catalogue().items() if entry.teacher}
    assert {name for name in members("marks2024") if name in taught} == {
        "beitv2-vitb16", "milan-vitb16", "eva-vitb16",
    }  # fmt: skip
    assert {*members("modern")} & taught == {
        "beitv2-b16-ft-in22k", "beit3-b16", "eva02-s14-mim", "eva02-b14-mim", "c-radio-v3-b16",
    }  # fmt: skip
    assert {catalogue()[name].teacher for name in taught} == {"clip"}
    for name, entry in catalogue().items():
        if "CLIP" in entry.description and entry.paradigm != "language-supervised":
            assert name in taught
        if entry.paradigm == "language-supervised":
            assert name not in taught


def test_the_2021_study_correlates_with_the_figures_of_its_table_1():
    published = {
        "insdis-resnet50": 59.5, "moco-v1-resnet50": 60.6, "pcl-v1-resnet50": 61.5,
        "pirl-pycontrast-resnet50": 61.7, "pcl-v2-resnet50": 67.6, "simclr-v1-resnet50": 69.3,
        "moco-v2-resnet50": 71.1, "simclr-v2-resnet50": 71.7, "sela-v2-resnet50": 71.8,
        "infomin-resnet50": 73.0, "byol-deepmind-resnet50": 74.3, "deepcluster-v2-resnet50": 75.2,
        "swav-resnet50": 75.3, "supervised-resnet50": 77.2,
    }  # fmt: skip
    assert {n: catalogue()[n].imagenet_top1 for n in members("ericsson2021")} == published


@pytest.mark.parametrize("name", STUDIES)
def test_an_entry_of_a_study_is_complete(name):
    entry = STUDIES[name]
    assert timm.models.is_model(entry.arch)
    assert entry.weights == ""
    assert entry.urls or entry.by_hand
    assert all(url.startswith("https://") for url in entry.urls)
    assert entry.file.startswith(entry.lineage)
    assert re.fullmatch(r"[\w.-]+\.(torch|pth|pth\.tar|pkl)", entry.file)
    assert (entry.backbone, entry.width) in {("resnet50", 2048), ("vitb16", 768)}
    assert name.startswith(entry.lineage)
    assert entry.stage == "late"
    assert entry.pretraining == ["imagenet"]
    assert re.fullmatch(r"|[0-9a-f]{8,64}", entry.sha256)
    assert len(entry.sha256) in (0, 64) or f"-{entry.sha256}." in entry.urls[0]
    plain = name.startswith(("simclr-v1", "simclr-v2"))  # inputs in 0..1
    assert entry.mean == ([0.0, 0.0, 0.0] if plain else [0.485, 0.456, 0.406])
    assert entry.std == ([1.0, 1.0, 1.0] if plain else [0.229, 0.224, 0.225])
    assert (entry.image_size, entry.crop_pct) == (224, 0.875)
    bilinear = entry.backbone == "resnet50" or entry.method == "moco-v3"
    if name == "dino-resnet50":
        bilinear = False
    assert entry.interpolation == ("bilinear" if bilinear else "bicubic")


@pytest.mark.parametrize("name", [*STUDIES, *MODERN])
def test_what_an_entry_says_is_of_the_right_type_and_goes_together(name):
    entry = catalogue()[name]
    told = (
        "family", "paradigm", "method", "lineage", "site", "licence", "note", "unverified",
        "imagenet_source", "description", "by_hand",
    )  # fmt: skip
    assert all(isinstance(getattr(entry, field), str) for field in told)
    assert all("\n" not in getattr(entry, field) for field in told)
    for field in ("family", "paradigm", "method", "lineage", "site", "description", "backbone"):
        assert getattr(entry, field), field
    assert entry.paradigm in {"discriminative", "generative", "supervised", "language-supervised"}
    assert entry.imagenet_source or not entry.imagenet_top1
    assert 0 <= entry.imagenet_top1 < 100
    assert entry.pretraining
    assert all(isinstance(one, str) for one in entry.pretraining)
    assert isinstance(entry.epochs, int)
    assert len(entry.description) < 100


@pytest.mark.parametrize("name", MODERN)
def test_a_modern_model_is_a_tag_of_timms_under_its_licence(name):
    entry = catalogue()[name]
    assert entry.weights == "hub"
    assert timm.models.is_model_pretrained(entry.arch)
    assert entry.licence == timm.get_pretrained_cfg(entry.arch).license
    assert (entry.mean, entry.std, entry.interpolation, entry.image_size) == ([], [], "", 0)
    assert (entry.urls, entry.rules, entry.nest, entry.converts) == ([], [], "", False)


def test_files_that_models_share_are_fetched_from_the_same_place():
    by_file = {}
    for entry in STUDIES.values():
        by_file.setdefault(entry.file, []).append((entry.urls, entry.by_hand, entry.lineage))
    assert all(one == places[0] for places in by_file.values() for one in places)
    assert len(by_file) == len(STUDIES) - 2 - 2  # MoCo v3 twice two, BEiT v2 three


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("dino-vitb16", "dino-b16"),
        ("mae-vitb16", "mae-b16"),
        ("supervised-resnet50", "resnet50-tv"),
        ("moco-v3-resnet50", "moco-v3-resnet50-momentum"),
        ("moco-v3-vitb16", "moco-v3-vitb16-momentum"),
        ("beitv2-vitb16", "beitv2-vitb16-norm"),
        ("beitv2-vitb16", "beitv2-vitb16-cls"),
        ("beitv2-vitb16", "beitv2-b16-ft-in22k"),
    ],
)
def test_models_of_one_training_run_share_their_lineage(one, other):
    assert catalogue()[one].lineage == catalogue()[other].lineage


def test_no_other_models_share_a_lineage():
    lineages = [e.lineage for n, e in catalogue().items() if n in STUDIES or n in MODERN]
    assert len(lineages) - len({*lineages}) == 8
    assert catalogue()["pirl-resnet50"].lineage != catalogue()["pirl-pycontrast-resnet50"].lineage


def test_a_table_may_take_fields_of_another_that_is_no_entry(tmp_path):
    (tmp_path / "c.toml").write_text(
        '[_base]\narch = "a"\nwidth = 3\n[one]\nlike = "_base"\nwidth = 4\n[two]\nlike = "_base"\n'
    )
    found = read_catalogue([tmp_path / "c.toml"], Entry)
    assert {n: (e.arch, e.width) for n, e in found.items()} == {"one": ("a", 4), "two": ("a", 3)}
