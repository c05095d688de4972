"""CUB-200-2011: 200 kinds of birds, with its official train / test division."""

from __future__ import annotations

from pathlib import Path

from featstore.datasets import lists
from featstore.datasets.files import file_split
from featstore.datasets.image_split import ImageSplit
from featstore.datasets.names import Entry
from featstore.errors import BadImageError


def read(entry: Entry, split: str, root: Path) -> ImageSplit:
    """Split `train` or `test`, in the order of the image ids; label = class id - 1.

    Raises
    ------
    MissingDatasetError
        The folder, a list, or an image that the lists name is absent.
    BadImageError
        The lists do not fit each other.
    """
    place = lists.find_place(
        entry, root, ("CUB_200_2011", "."), lambda folder: (folder / "images.txt").is_file()
    )
    if place is None:
        raise lists.absent(entry, root, "no CUB_200_2011/images.txt")
    names, images, labels, in_train = (
        lists.read_table(entry.name, place / f"{name}.txt")
        for name in ("classes", "images", "image_class_labels", "train_test_split")
    )
    lists.check_categories(entry, len(names), place / "classes.txt")
    odd = next((one for one in (*names, *images) if not one.isdecimal()), None)
    if odd:
        raise BadImageError(
            f"{place}: a list has the id {odd!r}, which is no number. Fetch it again"
        )
    # The four lists are joined on the ids: nothing says that their lines stand in one order.
    numbers = {number: label for label, number in enumerate(sorted(names, key=int))}
    paths, targets = [], []
    for image in sorted(images, key=int):
        for name, table in (("image_class_labels", labels), ("train_test_split", in_train)):
            if image not in table:
                raise BadImageError(
                    f"{place / name}.txt lacks the image {image} of images.txt. Fetch the "
                    f"dataset again"
                )
        number, folder = labels[image], images[image].partition("/")[0]
        if names.get(number) != folder:
            raise BadImageError(
                f"{place}: the image {images[image]} has the class {number}, which classes.txt "
                f"calls {names.get(number)}. Fetch the dataset again"
            )
        if in_train[image] == ("1" if split == "train" else "0"):
            paths.append(place / "images" / images[image])
            targets.append(numbers[number])
    lists.check_count(entry, split, len(paths))
    categories = [names[number].partition(".")[2] for number in numbers]
    return file_split(entry.name, split, place, paths, targets, categories)
