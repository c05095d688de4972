"""DomainNet in miniature, with real names and labels; and the 345 names against published facts."""

import dataclasses

import pytest
from PIL import Image

from featstore.datasets import catalogue, domainnet, load_dataset
from featstore.errors import BadImageError, MissingDatasetError

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
# By the lists' own order, which is not sorted; t-shirt is absent from painting_train.
LABELS = {"The_Eiffel_Tower": 308, "aircraft_carrier": 0, "t-shirt": 327}
ENTRIES = {
    one: dataclasses.replace(catalogue()[f"domainnet_{one}"], n_images={}) for one in DOMAINS
}


def path_of(domain, category, number):
    if domain == "quickdraw":
        return f"quickdraw/{category}/{5347855063580672 + number}.png"
    return f"{domain}/{category}/{domain}_{LABELS[category] + 1:03d}_{number:06d}.jpg"


def rows(domain, split):
    numbers = (18, 7) if split == "train" else (3,)
    skipped = {("painting", "train"): "t-shirt"}.get((domain, split))
    return [
        (path_of(domain, category, number), label)
        for number in numbers
        for category, label in LABELS.items()
        if category != skipped
    ]


def write(root, base="domainnet", listing=".", domains=DOMAINS):
    place = root / base
    for domain in domains:
        for split in ("train", "test"):
            for path, _ in rows(domain, split):
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4)).save(place / path)
            (place / listing).mkdir(parents=True, exist_ok=True)
            text = "".join(f"{path} {label}\n" for path, label in rows(domain, split))
            (place / listing / f"{domain}_{split}.txt").write_text(text)
    return place


@pytest.mark.parametrize("domain", DOMAINS)
def test_labels_and_order_are_those_of_the_official_lists(tmp_path, domain):
    write(tmp_path)
    for split in ("train", "test"):
        images = domainnet.read(ENTRIES[domain], split, tmp_path)
        assert list(zip(images.sample_ids, images.labels.tolist(), strict=True)) == rows(
            domain, split
        )
        assert len(images.categories) == 345
        for path, label in rows(domain, split):
            assert images.categories[label] == path.split("/")[1]
        assert images.read(0).size == (4, 4)


def test_a_category_that_a_list_lacks_shifts_no_label(tmp_path):
    write(tmp_path)
    painting = domainnet.read(ENTRIES["painting"], "train", tmp_path)
    assert sorted({*painting.labels.tolist()}) == [0, 308]
    other = domainnet.read(ENTRIES["sketch"], "test", tmp_path)
    assert painting.categories == other.categories


def test_the_names_stand_where_the_publication_has_them():
    names = domainnet.read_categories()
    assert len({*names}) == 345
    expected = {
        "aircraft_carrier": 0, "cello": 66, "cell_phone": 67, "paintbrush": 205, "paint_can": 206,
        "teapot": 302, "The_Eiffel_Tower": 308, "The_Great_Wall_of_China": 309,
        "The_Mona_Lisa": 310, "t-shirt": 327, "zigzag": 344,
    }  # fmt: skip
    assert {name: names.index(name) for name in expected} == expected
    assert sum(a != b for a, b in zip(names, sorted(names), strict=True)) == 328


@pytest.mark.parametrize("listing", ["splits", "txt", "domainnet/txt"])
@pytest.mark.parametrize(
    "base", ["domainnet", "DomainNet", "domainnet_real", ".", "domainnet/domainnet"]
)
def test_copies_that_lie_elsewhere_are_the_same_dataset(tmp_path, base, listing):
    write(tmp_path / "a", domains=["real"])
    write(tmp_path / "b", base, listing, ["real"])
    usual = domainnet.read(ENTRIES["real"], "test", tmp_path / "a")
    other = domainnet.read(ENTRIES["real"], "test", tmp_path / "b")
    assert other.fingerprint == usual.fingerprint


def test_what_else_is_fetched_changes_no_fingerprint(tmp_path):
    write(tmp_path, domains=["painting"])
    alone = domainnet.read(ENTRIES["painting"], "train", tmp_path).fingerprint
    write(tmp_path)
    assert domainnet.read(ENTRIES["painting"], "train", tmp_path).fingerprint == alone


def test_lists_of_another_release_are_said_to_be_such(tmp_path):
    place = write(tmp_path)
    with (place / "clipart_train.txt").open("a") as listing:
        listing.write("clipart/t-shirt/clipart_328_009999.jpg 327\n")
    with pytest.raises(MissingDatasetError, match=r"clipart_328_009999.jpg.*1 of 7.*two releases"):
        domainnet.read(ENTRIES["clipart"], "train", tmp_path)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("clipart/t-shirt/clipart_328_000018.jpg 345", r"label 345; labels lie in 0\.\.344"),
        ("clipart/The_Eiffel_Tower/clipart_309_000018.jpg 0", "label 0, which is aircraft_carrier"),
        ("real/t-shirt/real_328_000018.jpg 327", "expected clipart/CATEGORY/IMAGE"),
        ("clipart/clipart_328_000018.jpg 327", "expected clipart/CATEGORY/IMAGE"),
    ],
)
def test_a_list_with_labels_of_its_own_is_refused(tmp_path, line, fault):
    place = write(tmp_path)
    (place / "clipart_test.txt").write_text(line + "\n")
    with pytest.raises(BadImageError, match=fault):
        domainnet.read(ENTRIES["clipart"], "test", tmp_path)


def test_a_missing_list_and_a_missing_dataset_are_named(tmp_path):
    with pytest.raises(MissingDatasetError) as caught:
        load_dataset("domainnet_real", data_root=tmp_path).split("train")
    assert "csr.bu.edu/ftp/visda/2019/multi-source/real.zip" in str(caught.value)
    (write(tmp_path) / "real_train.txt").unlink()
    with pytest.raises(MissingDatasetError, match="real_train.txt"):
        domainnet.read(ENTRIES["real"], "train", tmp_path)
    assert len(domainnet.read(ENTRIES["real"], "test", tmp_path)) == 3


def test_a_folder_whose_name_is_written_another_way_is_the_same_category(tmp_path):
    place = write(tmp_path, domains=("real",))
    (place / "real" / "t-shirt").rename(place / "real" / "T_shirt")
    for split in ("train", "test"):
        listing = place / f"real_{split}.txt"
        listing.write_text(listing.read_text().replace("/t-shirt/", "/T_shirt/"))
    images = domainnet.read(ENTRIES["real"], "test", tmp_path)
    (label,) = (one for path, one in zip(images.sample_ids, images.labels, strict=True)
                if "T_shirt" in path)  # fmt: skip
    assert images.categories[label] == "t-shirt"
