"""The full fingerprint of one dataset kept in three ways: files, tar shards, Parquet."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from featstore.datasets import load_dataset


def encoded(changed=-1):
    images = []
    for i in range(6):
        file = io.BytesIO()
        pixels = np.full((4, 4, 3), 40 * i, np.uint8)
        pixels[0, 0, 0] += i == changed
        Image.fromarray(pixels).save(file, "BMP")  # uncompressed: an edit keeps the size
        images.append(file.getvalue())
    return images


def write_files(root, images):
    for i, content in enumerate(images):
        path = root / "train" / "ab"[i // 3] / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return f"folder:{root}"


def write_shards(root, images):
    root.mkdir(parents=True)
    with tarfile.open(root / "train-000000.tar", "w") as tar:
        for i, content in enumerate(images):
            for name, data in ((f"{i}.bmp", content), (f"{i}.cls", str(i // 3).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return f"wds:{root}"


def write_parquet(root, images):
    (root / "data").mkdir(parents=True)
    cells = [{"bytes": content, "path": None} for content in images]
    table = pa.table({"image": cells, "label": [i // 3 for i in range(6)]})
    pq.write_table(table, root / "data" / "train-00000-of-00001.parquet")
    return f"hf:{root}"


WRITERS = [write_files, write_shards, write_parquet]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path / "home"))


def test_the_same_images_have_one_digest_however_they_are_kept(tmp_path):
    names = [write(tmp_path / write.__name__, encoded()) for write in WRITERS]
    assert len({load_dataset(name).split("train").bytes_digest for name in names}) == 1


@pytest.mark.parametrize("write", WRITERS)
def test_an_edit_that_keeps_an_images_size_changes_the_digest(write, tmp_path):
    splits = [
        load_dataset(write(tmp_path / str(changed), encoded(changed))).split("train")
        for changed in (-1, 4)
    ]
    assert splits[0].bytes_digest != splits[1].bytes_digest
    if write is not write_parquet:  # whose content is that of the cells
        assert splits[0].fingerprint == splits[1].fingerprint
