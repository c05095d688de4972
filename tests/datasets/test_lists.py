"""Lists as they circulate, folders where people unpack them."""

import logging

import pytest

from featstore.datasets import Entry, catalogue, lists
from featstore.errors import BadImageError, CatalogueError, MissingDatasetError


def entry(**fields):
    return Entry("birds", "cub", **fields)


@pytest.mark.parametrize(
    "text",
    [
        "a b/1.jpg 0\nc/2.jpg 11\n",
        "a b/1.jpg 0\r\nc/2.jpg 11\r\n",
        "a b/1.jpg 0\nc/2.jpg 11",
        "\ufeffa b/1.jpg 0\n\n  \nc/2.jpg 11\n\n",
        "a b/1.jpg  0 \nc/2.jpg\t11\n",
    ],
)
def test_a_list_is_the_same_whatever_its_line_ends_and_spaces(tmp_path, text):
    (tmp_path / "l.txt").write_bytes(text.encode())
    pairs = lists.read_labelled("birds", tmp_path / "l.txt", 12)
    assert pairs == [("a b/1.jpg", 0), ("c/2.jpg", 11)]


@pytest.mark.parametrize("line", ["a.jpg", "a.jpg x", "7", "a.jpg -1", "a.jpg 1.0"])
def test_a_line_without_a_label_is_refused_by_name(tmp_path, line):
    (tmp_path / "l.txt").write_text(f"b.jpg 0\n{line}\n")
    with pytest.raises(BadImageError, match=f"l.txt has the line '{line}'; expected PATH LABEL"):
        lists.read_labelled("birds", tmp_path / "l.txt", 12)


def test_a_label_out_of_range_is_refused_with_its_image_and_the_range(tmp_path):
    (tmp_path / "l.txt").write_text("b.jpg 11\na c.jpg 12\n")
    with pytest.raises(BadImageError, match=r"l.txt gives a c.jpg the label 12; .* 0\.\.11"):
        lists.read_labelled("birds", tmp_path / "l.txt", 12)


def test_a_table_keeps_the_spaces_of_what_stands_behind_the_id(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"1 Boeing 707 / 720\r\n20   b c")
    table = lists.read_table("birds", tmp_path / "t.txt")
    assert table == {"1": "Boeing 707 / 720", "20": "b c"}


@pytest.mark.parametrize(
    ("text", "fault"), [("1 a\n2\n", "'2' says nothing"), ("1 a\n1 b", "'1' comes twice")]
)
def test_a_table_with_a_bare_or_double_id_is_refused(tmp_path, text, fault):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(BadImageError, match=fault):
        lists.read_table("birds", tmp_path / "t.txt")


@pytest.mark.parametrize("read", [lists.read_table, lists.read_lines])
def test_a_missing_list_is_named(tmp_path, read):
    with pytest.raises(MissingDatasetError, match="birds.*gone.txt"):
        read("birds", tmp_path / "gone.txt")


def test_a_list_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "l.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(BadImageError, match="l.txt is no list in UTF-8"):
        lists.read_lines("birds", tmp_path / "l.txt")


@pytest.mark.parametrize("at", ["B", "birds/B", "B/B", "birds/B/B", "birds", "."])
def test_a_place_is_found_under_either_name_and_one_folder_too_deep(tmp_path, at):
    (tmp_path / at).mkdir(parents=True, exist_ok=True)
    (tmp_path / at / "mark").touch()
    found = lists.find_place(entry(), tmp_path, ("B", "."), lambda one: (one / "mark").exists())
    assert found == tmp_path / at


def test_no_place_is_none_and_the_error_says_how_to_get_the_files(tmp_path):
    assert lists.find_place(entry(), tmp_path, ("B", "."), lambda one: False) is None
    fetched = str(lists.absent(entry(urls=["http://x/y.tar"]), tmp_path, "no B/mark"))
    assert f"birds is not below {tmp_path} (no B/mark)" in fetched
    assert f"featstore datasets birds --download --data-root {tmp_path}" in fetched
    assert "by hand" in str(lists.absent(entry(), tmp_path, "B/mark"))


def test_folders_come_by_code_point_without_hidden_ones(tmp_path):
    for name in ("b", "B", "a_c", "ab", ".git", "__MACOSX", "_x"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    assert lists.subfolders(tmp_path) == ["B", "_x", "a_c", "ab", "b"]


@pytest.mark.parametrize(("found", "said"), [(5993, True), (5994, False), (7, True)])
def test_another_number_of_images_than_published_is_said_with_both(caplog, found, said):
    with caplog.at_level(logging.WARNING):
        lists.check_count(entry(n_images={"train": 5994}), "train", found)
    assert (f"has {found} images here, 5994 were published" in caplog.text) == said


def test_nothing_is_said_where_nothing_was_published(caplog):
    lists.check_count(entry(), "train", 7)
    lists.check_categories(entry(), 7, "x")
    assert not caplog.text


def test_a_split_without_images_and_a_missing_category_are_refused(tmp_path):
    with pytest.raises(MissingDatasetError, match="birds test has no image"):
        lists.check_count(entry(), "test", 0)
    with pytest.raises(BadImageError, match="has 199 categories, birds has 200: .*shift"):
        lists.check_categories(entry(categories=200), 199, tmp_path)


@pytest.mark.parametrize("value", ["maybe", None, 3])
def test_an_option_that_the_reader_does_not_know_is_refused(value):
    asked = entry(options={} if value is None else {"rank": value})
    with pytest.raises(
        CatalogueError, match="birds has rank = .*; its reader knows genus, species"
    ):
        lists.option(asked, "rank", ("genus", "species"))
    assert lists.option(entry(), "rank", ("genus", "species"), "genus") == "genus"


PUBLISHED = {  # images in all, as published
    "imagenet": 1281167 + 50000, "inaturalist": 10000 * 60, "cub": 11788, "pascal": 2913,
    "domainnet_clipart": 48129, "domainnet_infograph": 51605, "domainnet_painting": 72266,
    "domainnet_quickdraw": 172500, "domainnet_real": 172947, "domainnet_sketch": 69128,
    "inaturalist_genus": 1103 * 60, "inaturalist_species": 1103 * 60, "caltech256": 30607,
    "caltech101": 3060 + 6728, "voc2007": 9963,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_catalogue_agrees_with_the_publications(name):
    known = catalogue()[name]
    assert sum(known.n_images.values()) == PUBLISHED[name]
    assert set(known.n_images) == set(known.splits)
    if known.name == "caltech101":  # images by program, the study's lists by hand
        assert known.urls
        assert known.by_hand
    else:
        assert bool(known.urls) != bool(known.by_hand)
    assert known.login == (name == "imagenet")
    assert (known.task == "multi-label") == (known.metric == "map11") == (name == "voc2007")


def test_the_studys_sets_have_their_datasets_and_domains_are_no_independent_ones():
    groups = {}
    for name in PUBLISHED:
        for one in catalogue()[name].sets:
            groups.setdefault(one, []).append(name)
    assert groups["marks2024"] == list(PUBLISHED)[:10]
    assert groups["marks2024-extra"] == ["inaturalist_genus", "inaturalist_species", "caltech256"]
    assert groups["ericsson2021"] == ["caltech101", "voc2007"]
    clusters = {catalogue()[name].cluster for name in PUBLISHED if name.startswith("domainnet")}
    assert clusters == {"domainnet"}
    squares = {name: catalogue()[name].square for name in PUBLISHED if catalogue()[name].square}
    assert squares == {"cub": "pad", "pascal": "crop", "caltech256": "pad"}
