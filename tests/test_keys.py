import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.keys import BNMode, FeatureKey, Recipe, decode_part, encode_part

NAMES = st.text(min_size=1, max_size=40).filter(lambda s: "\0" not in s and len(s.encode()) < 70)


@given(NAMES)
def test_any_name_becomes_one_visible_path_part_and_comes_back(name):
    part = encode_part(name)
    assert decode_part(part) == name
    assert "/" not in part
    assert not part.startswith((".", "__"))


@pytest.mark.parametrize(
    "name", [".", "..", "../../x", "/etc/passwd", "__meta", "a b", "ä/ö", "%41"]
)
def test_directions_and_separators_stay_within_the_store(name):
    part = encode_part(name)
    assert part not in (".", "..")
    assert "/" not in part
    assert decode_part(part) == name


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 300])
def test_names_that_no_file_system_takes_are_refused(name):
    with pytest.raises(ValueError, match="in a path|cannot name"):
        encode_part(name)


@given(NAMES, NAMES, st.sampled_from(BNMode))
def test_keys_come_back_from_their_place(model, dataset, bn_mode):
    key = FeatureKey(model, dataset, bn_mode)
    assert FeatureKey.from_path(key.path) == key


def test_keys_come_back_from_what_is_printed():
    key = FeatureKey("timm:vit@cls~a", "folder:/a b", BNMode.ADAPT)
    assert FeatureKey.parse(str(key)) == key
    with pytest.raises(ValueError, match="MODEL DATASET BN_MODE"):
        FeatureKey.parse("only two")


def test_digest_is_sha256_of_canonical_json_whatever_the_order():
    fields = {"b": [1, 2], "a": "ü"}
    text = json.dumps({"a": "ü", "b": [1, 2]}, separators=(",", ":"), ensure_ascii=False)
    assert Recipe(fields).digest == hashlib.sha256(text.encode()).hexdigest()
    assert Recipe(dict(reversed(fields.items()))).digest == Recipe(fields).digest


def test_differences_name_what_is_not_the_same():
    here, there = Recipe({"a": 1, "b": 2}), Recipe({"a": 1, "b": 3, "c": 4})
    assert here.differences(there) == {"b": (2, 3), "c": (None, 4)}
    assert here.differences(here) == {}
