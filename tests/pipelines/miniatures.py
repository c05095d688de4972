"""The studies' datasets in miniature, in the layouts in which they are published.

    write(name, root, {"train": 4, "test": 2}, categories=2)

makes so many images of each category for each split; of a set without splits, all together.
"""

import csv
import pickle

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
# By the published list of all 345.
OF_DOMAINNET = {"aircraft_carrier": 0, "cello": 66, "zigzag": 344}
LESIONS = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumothorax",
)  # fmt: skip
OF_VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def pixels(label, number, height=32, width=32):
    """Noise with the tint of its category."""
    noise = np.random.default_rng(number).integers(0, 150, (height, width, 3), dtype=np.uint8)
    tint = [105 * (label + 1 >> bit & 1) for bit in range(3)]
    return noise + np.array(tint, np.uint8)


def picture(path, label, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(label, number, 24, 30)).save(path)


def lines(path, rows, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(end.join(rows) + end, newline="")


def members(sizes, categories):
    """For each split, (label, number) of each image; each number comes once."""
    found, number = {}, 0
    for split, size in sizes.items():
        found[split] = [
            (label, number + size * label + i) for label in range(categories) for i in range(size)
        ]
        number += size * categories
    return found


def pooled(images):
    return [one for of_split in images.values() for one in of_split]


def imagenet(base, images, categories):
    wnids = [f"n0144{label}764" for label in range(categories)]
    for split, folder in (("train", "train"), ("test", "val")):
        for label, number in images[split]:
            name = f"ILSVRC2012_val_{number:08}" if split == "test" else f"{wnids[label]}_{number}"
            picture(base / "imagenet" / folder / wnids[label] / f"{name}.JPEG", label, number)
    words = {wnid: (f"kind {label}",) for label, wnid in enumerate(wnids)}
    torch.save((words, []), base / "imagenet" / "meta.bin")


def inaturalist(base, images, categories):
    for split, folder in (("train", "train_mini"), ("test", "val")):
        for label, number in images[split]:
            kind = f"{label:05}_Animalia_Chordata_Aves_Order_Family{label}_Genus_species{label}"
            picture(base / "inaturalist" / folder / kind / f"{number}.jpg", label, number)


def cub(base, images, categories):
    base = base / "CUB_200_2011"
    kinds = [f"{label + 1:03}.Kind_{label}" for label in range(categories)]
    tables = {"images": [], "image_class_labels": [], "train_test_split": []}
    for split, rows in images.items():
        for label, number in rows:
            name = f"{kinds[label]}/{number}.jpg"
            picture(base / "images" / name, label, number)
            tables["images"].append(f"{number + 1} {name}")
            tables["image_class_labels"].append(f"{number + 1} {label + 1}")
            tables["train_test_split"].append(f"{number + 1} {int(split == 'train')}")
    tables["classes"] = [f"{label + 1} {kind}" for label, kind in enumerate(kinds)]
    for name, rows in tables.items():
        lines(base / f"{name}.txt", rows)


def pascal(base, images, categories):
    base = base / "VOCdevkit" / "VOC2012"
    for split, official in (("train", "train"), ("test", "val")):
        for label, number in images[split]:
            picture(base / "JPEGImages" / f"2007_{number:06}.jpg", label, number)
            mask = Image.fromarray(np.full((24, 30), label + 1, np.uint8), mode=None).convert("P")
            mask.putpalette([0] * 768)
            (base / "SegmentationClass").mkdir(exist_ok=True)
            mask.save(base / "SegmentationClass" / f"2007_{number:06}.png")
        listing = base / "ImageSets" / "Segmentation" / f"{official}.txt"
        lines(listing, [f"2007_{number:06}" for _, number in images[split]])


def domainnet(domain, base, images, categories):
    base = base / "domainnet"
    for split, rows in images.items():
        listed = []
        for label, number in rows:
            name, official = list(OF_DOMAINNET.items())[label]
            path = f"{domain}/{name}/{domain}_{number:06}.jpg"
            picture(base / path, label, number)
            listed.append(f"{path} {official}")
        lines(base / f"{domain}_{split}.txt", listed)


def batch(path, rows, key):
    flat = np.array([pixels(*one).transpose(2, 0, 1).ravel() for one in rows])
    dumped(path, {"data": flat, key: [label for label, _ in rows]})


def dumped(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def cifar10(base, images, categories):
    base = base / "cifar-10-batches-py"
    for part in range(5):
        batch(base / f"data_batch_{part + 1}", images["train"][part::5], "labels")
    batch(base / "test_batch", images["test"], "labels")
    dumped(base / "batches.meta", {"label_names": [f"kind {i}" for i in range(categories)]})


def cifar100(base, images, categories):
    base = base / "cifar-100-python"
    for split in ("train", "test"):
        batch(base / split, images[split], "fine_labels")
    dumped(base / "meta", {"fine_label_names": [f"kind {i}" for i in range(categories)]})


def caltech101(base, images, categories):
    base = base / "caltech101"
    names = ["BACKGROUND_Google", *(f"kind_{label}" for label in range(1, categories))]
    for split, rows in images.items():
        listed = []
        for label, number in rows:
            path = f"{names[label]}/image_{number:04}.jpg"
            picture(base / "101_ObjectCategories" / path, label, number)
            listed.append(f"{path} {label}")
        lines(base / f"{split}.txt", listed)


def voc2007(base, images, categories):
    """Each image shows half of the categories, so that no split lacks one."""
    base = base / "VOCdevkit" / "VOC2007"
    for split, rows in images.items():
        for label, number in rows:
            picture(base / "JPEGImages" / f"{number:06}.jpg", label, number)
        listing = base / "ImageSets" / "Main"
        lines(listing / f"{split}.txt", [f"{number:06}" for _, number in rows])
        for kind, name in enumerate(OF_VOC):
            said = [f"{number:06} {-1 if (label + kind) % 2 else 1:>2}" for label, number in rows]
            lines(listing / f"{name}_{split}.txt", said)


def dtd(base, images, categories):
    base = base / "dtd" / "dtd"
    for split, rows in images.items():
        listed = [f"kind{label}/kind{label}_{number:04}.jpg" for label, number in rows]
        for name, row in zip(listed, rows, strict=True):
            picture(base / "images" / name, *row)
        lines(base / "labels" / f"{split}1.txt", listed)


def fgvc_aircraft(base, images, categories):
    base = base / "fgvc-aircraft-2013b" / "data"
    variants = [f"7{label}7-300/ER" for label in range(categories)]
    lines(base / "variants.txt", variants)
    for split, rows in images.items():
        for label, number in rows:
            picture(base / "images" / f"{number:07}.jpg", label, number)
        listed = [f"{number:07} {variants[label]}" for label, number in rows]
        lines(base / f"images_variant_{split}.txt", listed)


def flowers102(base, images, categories):
    base = base / "flowers-102"
    labels = {number + 1: label + 1 for label, number in pooled(images)}
    for label, number in pooled(images):
        picture(base / "jpg" / f"image_{number + 1:05}.jpg", label, number)
    savemat(base / "imagelabels.mat", {"labels": np.array([[labels[i] for i in sorted(labels)]])})
    keys = {"train": "trnid", "val": "valid", "test": "tstid"}
    numbers = {keys[split]: [[n + 1 for _, n in rows]] for split, rows in images.items()}
    savemat(base / "setid.mat", {key: np.array(rows) for key, rows in numbers.items()})


def food101(base, images, categories):
    base = base / "food-101"
    lines(base / "meta" / "classes.txt", [f"dish_{label}" for label in range(categories)])
    for split, rows in images.items():
        for label, number in rows:
            picture(base / "images" / f"dish_{label}" / f"{number}.jpg", label, number)
        listed = [f"dish_{label}/{number}" for label, number in rows]
        lines(base / "meta" / f"{split}.txt", listed)


def oxford_pets(base, images, categories):
    base = base / "oxford-iiit-pet"
    for split, official in (("train", "trainval"), ("test", "test")):
        listed = []
        for label, number in images[split]:
            name = f"breed_{'abcde'[label]}_{number}"
            picture(base / "images" / f"{name}.jpg", label, number)
            listed.append(f"{name} {label + 1} 1 1")
        lines(base / "annotations" / f"{official}.txt", listed)


def stanford_cars(base, images, categories):
    base = base / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.empty((1, categories), object)
    names[0] = [f"Car {label} Coupe 2012" for label in range(categories)]
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    tables = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for split, rows in images.items():
        table = np.zeros((1, len(rows)), [("class", object), ("fname", object)])
        for i, (label, number) in enumerate(rows):
            table[0, i] = np.uint8(label + 1), f"{i + 1:05}.jpg"
            picture(base / f"cars_{split}" / f"{i + 1:05}.jpg", label, number)
        savemat(base / tables[split], {"annotations": table})


def sun397(base, images, categories):
    base = base / "SUN397"
    names = [f"{'abcde'[label]}/{'abcde'[label]}_place/indoor" for label in range(categories)]
    lines(base / "ClassName.txt", [f"/{name}" for name in names])
    for split, official in (("train", "Training_01.txt"), ("test", "Testing_01.txt")):
        listed = []
        for label, number in images[split]:
            picture(base / names[label] / f"sun_{number}.jpg", label, number)
            listed.append(f"/{names[label]}/sun_{number}.jpg")
        lines(base / official, listed, end="\r\n")


def crop_diseases(base, images, categories):
    for label, number in pooled(images):
        folder = base / "crop_diseases" / "dataset" / "train" / f"Crop_{label}___rot"
        picture(folder / f"{number}.jpg", label, number)


def isic2018(base, images, categories):
    base, task = base / "isic2018", "ISIC2018_Task3_Training"
    rows = [["image", *LESIONS]]
    for label, number in pooled(images):
        picture(base / f"{task}_Input" / f"ISIC_{number:07}.jpg", label, number)
        rows.append([f"ISIC_{number:07}", *(float(i == label) for i in range(len(LESIONS)))])
    table(base / f"{task}_GroundTruth" / f"{task}_GroundTruth.csv", rows)


def chestx(base, images, categories):
    base = base / "chestx"
    rows = [["Image Index", "Finding Labels", "Follow-up #"]]
    for label, number in pooled(images):
        picture(base / "images" / f"{number:08}_000.png", label, number)
        rows.append([f"{number:08}_000.png", FINDINGS[label], 0])
    table(base / "Data_Entry_2017.csv", rows)


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def eurosat(base, images, categories):
    for label, number in pooled(images):
        kind = ("Forest", "River", "SeaLake", "Pasture", "Highway")[label]
        picture(base / "eurosat" / "2750" / kind / f"{kind}_{number}.jpg", label, number)


LAYOUTS = {
    make.__name__: make
    for make in (
        imagenet, inaturalist, cub, pascal, cifar10, cifar100, caltech101, voc2007, dtd,
        fgvc_aircraft, flowers102, food101, oxford_pets, stanford_cars, sun397, crop_diseases,
        isic2018, chestx, eurosat,
    )
}  # fmt: skip
WITH_VAL = {"voc2007", "dtd", "fgvc_aircraft", "flowers102"}


def write(name, root, sizes, categories):
    """Write a dataset by its catalogue name, without its @TRANSFORM."""
    root.mkdir(parents=True, exist_ok=True)
    sizes = dict(sizes) if name in WITH_VAL else {s: n for s, n in sizes.items() if s != "val"}
    images = members(sizes, categories)
    if name.startswith("domainnet_"):
        domainnet(name.removeprefix("domainnet_"), root, images, categories)
    else:
        LAYOUTS[name](root, images, categories)
