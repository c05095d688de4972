"""Miniatures of the few-shot target sets, in the forms that circulate."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from featstore.datasets import catalogue, load, load_dataset
from featstore.errors import BadImageError, FeatStoreError, MissingDatasetError

LESIONS = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
FINDINGS = [
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumothorax",
]  # fmt: skip
OLD = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


@pytest.fixture(autouse=True)
def _miniature(monkeypatch):
    """Miniatures have fewer classes than were published, which else is refused."""
    small = {name: replace(entry, categories=0) for name, entry in catalogue().items()}
    monkeypatch.setattr(load, "catalogue", lambda: small)


def colour(name):
    return tuple(int(c) for c in np.random.default_rng(list(name.encode())).integers(0, 256, 3))


def write(path, mode="RGB", kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), colour(path.name)).convert(mode).save(path, kind)


def splits(name, root):
    dataset = load_dataset(name, data_root=root)
    assert tuple(dataset.splits) == ("train", "test")
    return dataset.split("train"), dataset.split("test")


def pooled(name, root):
    """Label by file name, over both splits; each image once, read as RGB with its own colour."""
    found = {}
    parts = splits(name, root)
    for images in parts:
        for row, sample in enumerate(images.sample_ids):
            file = sample.rpartition("/")[2]
            assert file not in found
            found[file] = images.categories[images.labels[row]]
            image = images.read(row)
            assert image.mode == "RGB"
            if name != "chestx":
                assert np.abs(np.asarray(image).astype(int) - np.array(colour(file))).max() <= 4
    assert parts[0].categories == parts[1].categories
    return found, list(parts[0].categories)


def crop_diseases(root, base="crop_diseases"):
    """Names with spaces, dots and commas; .JPG, .jpg and a .png."""
    folders = ["Pepper,_bell___healthy", "Corn_(maize)___Common_rust_", "Tomato___healthy"]
    expected = {}
    for folder in folders:
        for i in range(5):
            file = f"82{i}dca___Rutg._HL, {folder[:3]} {i}" + (".JPG", ".jpg", ".png")[i % 3]
            write(root / base / "dataset" / "train" / folder / file)
            expected[file] = folder
        write(root / base / "dataset" / "test" / folder / f"not used {folder[:3]}.JPG")
    (root / base / "dataset" / "train" / "Thumbs.db").write_bytes(b"x")
    return expected, sorted(folders)


def isic2018(root, base="isic2018", columns=LESIONS, cell="{:.1f}", end="\n"):
    expected, rows = {}, ["image," + ",".join(columns)]
    for i in range(20):
        name, lesion = f"ISIC_00243{i:02}", LESIONS[i * 3 % 7]
        rows.append(",".join([name, *(cell.format(int(c == lesion)) for c in columns)]))
        write(root / base / "ISIC2018_Task3_Training_Input" / f"{name}.jpg")
        expected[f"{name}.jpg"] = lesion
    (root / base / "ISIC2018_Task3_Training_Input" / "ATTRIBUTION.txt").write_text("by")
    table(root).parent.mkdir(exist_ok=True)
    table(root).write_text(end.join(rows), newline="")
    return expected, LESIONS


def table(root, base="isic2018"):
    folder = root / base / "ISIC2018_Task3_Training_GroundTruth"
    return folder / "ISIC2018_Task3_Training_GroundTruth.csv"


def chestx(root, base="chestx", header=OLD, nested=False):
    """Rows of one finding, of several, of none, of Pneumonia and of one that is left out."""
    new = not header.endswith(",")
    rows, expected = [header], {}
    findings = [*FINDINGS, *FINDINGS, "No Finding", "Pneumonia", "Hernia", "Mass|Nodule", "Mass"]
    for i, finding in enumerate(findings):
        file = f"{i:08}_000.png"
        rest = f"{i},57,M,PA,2682,2749,0.143,0.143" if new else f"{i:08},058Y,M,PA,2682,2749,.1,.1"
        rows.append(f"{file},{finding},{i if new else f'{i:03}'},{rest}")
        folder = f"images_{i % 3 + 1:03}/images" if nested else "images"
        write(root / base / folder / file, ("L", "RGBA")[i == 2])
        if finding in FINDINGS:
            expected[file] = finding
    (root / base / "Data_Entry_2017.csv").write_text("\n".join(rows))
    return expected, FINDINGS


MAKERS = {"crop_diseases": crop_diseases, "isic2018": isic2018, "chestx": chestx}
OTHER_PLACES = {"crop_diseases": "CropDiseases", "isic2018": "ISIC", "chestx": "ChestX"}


@pytest.mark.parametrize("name", MAKERS)
def test_a_miniature_is_read_with_its_labels_as_one_pool(name, tmp_path):
    expected, categories = MAKERS[name](tmp_path)
    assert pooled(name, tmp_path) == (expected, categories)


@pytest.mark.parametrize("name", MAKERS)
def test_a_fifth_of_each_class_is_for_testing_and_always_the_same(name, tmp_path):
    expected, categories = MAKERS[name](tmp_path)
    train, test = splits(name, tmp_path)
    assert {*train.sample_ids}.isdisjoint(test.sample_ids)
    sizes = [list(expected.values()).count(category) for category in categories]
    counts = np.bincount(test.labels, minlength=len(categories)).tolist()
    assert counts == [max(1, round(size / 5)) if size > 1 else 0 for size in sizes]
    assert [one.fingerprint for one in splits(name, tmp_path)] == [
        train.fingerprint, test.fingerprint,
    ]  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_the_study_s_own_folder_is_found_as_well(name, tmp_path):
    expected, _ = MAKERS[name](tmp_path)
    (tmp_path / name).rename(tmp_path / OTHER_PLACES[name])
    assert pooled(name, tmp_path)[0] == expected


@pytest.mark.parametrize("columns", [LESIONS, sorted(LESIONS)], ids=["official", "alphabetical"])
@pytest.mark.parametrize("cell", ["{:.1f}", "{}"], ids=["1.0", "1"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_lesions_are_found_by_their_columns_names(columns, cell, end, tmp_path):
    expected, categories = isic2018(tmp_path, columns=columns, cell=cell, end=end)
    assert pooled("isic2018", tmp_path) == (expected, categories)


@pytest.mark.parametrize("header", [OLD, OLD.removesuffix(",")], ids=["12 cells", "11 cells"])
@pytest.mark.parametrize("nested", [False, True])
def test_findings_are_read_in_both_styles_and_images_wherever_they_lie(header, nested, tmp_path):
    expected, categories = chestx(tmp_path, header=header, nested=nested)
    assert pooled("chestx", tmp_path) == (expected, categories)


def complaint(name, root):
    with pytest.raises(FeatStoreError) as caught:
        splits(name, root)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", MAKERS)
def test_a_set_that_is_not_there_says_that_it_is_placed_by_hand_and_where_it_is_had(name, tmp_path):
    error = complaint(name, tmp_path)
    assert isinstance(error, MissingDatasetError)
    assert str(error).startswith(f"{name} is not below {tmp_path} (no folder {tmp_path / name})")
    assert "by hand. It is had from" in str(error)
    assert name in str(error).partition("had from")[2]


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("crop_diseases", "dataset/train"),
        ("isic2018", "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv"),
        ("chestx", "Data_Entry_2017.csv"),
    ],
)
def test_a_missing_table_or_folder_is_named_and_one_that_lies_too_deep_is_found(
    name, missing, tmp_path
):
    MAKERS[name](tmp_path)
    (tmp_path / name / missing).rename(tmp_path / "elsewhere")
    error = complaint(name, tmp_path)
    assert isinstance(error, MissingDatasetError)
    assert f"{tmp_path / name / missing} is missing" in str(error)
    (tmp_path / "elsewhere").rename(tmp_path / name / missing)
    whole, _ = pooled(name, tmp_path)
    (tmp_path / name).rename(tmp_path / "elsewhere")
    (tmp_path / name).mkdir()
    (tmp_path / "elsewhere").rename(tmp_path / name / name)
    assert pooled(name, tmp_path)[0] == whole


@pytest.mark.parametrize("name", ["isic2018", "chestx"])
def test_a_listed_image_that_is_absent_is_named(name, tmp_path):
    expected, _ = MAKERS[name](tmp_path)
    file = next(iter(expected))
    next(tmp_path.rglob(file)).unlink()
    error = complaint(name, tmp_path)
    assert isinstance(error, MissingDatasetError)
    assert file in str(error)


def test_an_image_that_no_finding_asks_for_may_be_absent(tmp_path):
    expected, _ = chestx(tmp_path)
    (tmp_path / "chestx" / "images" / "00000015_000.png").unlink()  # Pneumonia
    assert pooled("chestx", tmp_path)[0] == expected


@pytest.mark.parametrize(
    "cells", ["0,0,0,0,0,0,0", "1,0,1,0,0,0,0", "1,0,0", "x,0,0,0,0,0,1", "2,0,0,0,0,0,0"]
)
def test_a_lesion_of_no_class_or_of_two_is_named(cells, tmp_path):
    isic2018(tmp_path)
    with table(tmp_path).open("a") as file:
        file.write(f"\nISIC_9999999,{cells}\n")
    error = complaint("isic2018", tmp_path)
    assert isinstance(error, BadImageError)
    assert "ISIC_9999999 no class or several" in str(error)


def test_a_table_of_lesions_without_a_class_is_refused(tmp_path):
    isic2018(tmp_path, columns=LESIONS[:-1])
    assert "has no column VASC; its header is image,MEL" in str(complaint("isic2018", tmp_path))


@pytest.mark.parametrize("content", ["", "Image,Finding\n", "a\nb\n"])
def test_another_table_of_findings_is_refused(content, tmp_path):
    chestx(tmp_path)
    (tmp_path / "chestx" / "Data_Entry_2017.csv").write_text(content)
    assert "not with 'Image Index,Finding Labels'" in str(complaint("chestx", tmp_path))


def test_an_empty_class_folder_is_named(tmp_path):
    crop_diseases(tmp_path)
    (tmp_path / "crop_diseases" / "dataset" / "train" / "Squash___Powdery_mildew").mkdir()
    assert "Squash___Powdery_mildew holds no image" in str(complaint("crop_diseases", tmp_path))


@pytest.mark.parametrize("name", MAKERS)
def test_another_number_of_images_than_expected_is_said(name, tmp_path, caplog):
    expected, _ = MAKERS[name](tmp_path)
    splits(name, tmp_path)
    assert f"{name} has {len(expected)} images here, " in caplog.text


def test_diseases_of_which_folders_are_missing_are_refused(tmp_path, monkeypatch):
    for name in ("Apple___healthy", "Tomato___healthy"):
        folder = tmp_path / "crop_diseases" / "dataset" / "train" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "0.png")
    monkeypatch.setattr(load, "catalogue", catalogue)
    with pytest.raises(BadImageError, match="2 categories, crop_diseases has 38: labels would"):
        load_dataset("crop_diseases", data_root=tmp_path).split("train")
