"""Datasets fetched from a real server on the loopback: killed, forged, damaged, gone on with."""

import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from featstore.datasets import Entry, catalogue, fetching, load, load_dataset
from featstore.datasets.names import status
from featstore.errors import MissingDatasetError

FETCHED = [name for name, e in catalogue().items() if e.urls and e.task != "dense"]

# What each archive holds, as published: names in the folder that a miniature has it in.
DOMAIN = {"{0}.zip": ("domainnet", "{0}"), "{0}_train.txt": ("domainnet", ""),
          "{0}_test.txt": ("domainnet", "")}  # fmt: skip
INATURALIST = {"train_mini.tar.gz": ("inaturalist", "train_mini"),
               "val.tar.gz": ("inaturalist", "val")}  # fmt: skip
IDX = [f"{one}-idx3-ubyte.gz" for one in ("train-images", "t10k-images")]
IDX += [f"{one}-idx1-ubyte.gz" for one in ("train-labels", "t10k-labels")]
HELD = {
    "caltech256": {"256_ObjectCategories.tar": ("caltech256", "256_ObjectCategories")},
    "cifar10": {"cifar-10-python.tar.gz": (".", "cifar-10-batches-py")},
    "cifar100": {"cifar-100-python.tar.gz": (".", "cifar-100-python")},
    "country211": {"country211.tgz": (".", "country211")},
    "cub": {"CUB_200_2011.tgz": (".", "CUB_200_2011")},
    "dtd": {"dtd-r1.0.1.tar.gz": ("dtd", "dtd")},
    "eurosat": {"EuroSAT.zip": ("eurosat", "2750")},
    "fashion_mnist": dict.fromkeys(IDX, ("FashionMNIST/raw", "")),
    "fgvc_aircraft": {"fgvc-aircraft-2013b.tar.gz": (".", "fgvc-aircraft-2013b")},
    "flowers102": {"102flowers.tgz": ("flowers-102", "jpg"),
                   "imagelabels.mat": ("flowers-102", ""), "setid.mat": ("flowers-102", "")},
    "food101": {"food-101.tar.gz": (".", "food-101")},
    "gtsrb": {"GTSRB-Training_fixed.zip": ("gtsrb", "GTSRB/Training"),
              "GTSRB_Final_Test_Images.zip": ("gtsrb", "GTSRB/Final_Test"),
              "GTSRB_Final_Test_GT.zip": ("gtsrb", "GT-final_test.csv")},
    "inaturalist": INATURALIST, "inaturalist_genus": INATURALIST,
    "inaturalist_species": INATURALIST,
    "mnist": dict.fromkeys(IDX, ("MNIST/raw", "")),
    "oxford_pets": {"images.tar.gz": ("oxford-iiit-pet", "images"),
                    "annotations.tar.gz": ("oxford-iiit-pet", "annotations")},
    "pascal": {"VOCtrainval_11-May-2012.tar": (".", "VOCdevkit")},
    "rendered_sst2": {"rendered-sst2.tgz": (".", "rendered-sst2")},
    "stl10": {"stl10_binary.tar.gz": (".", "stl10_binary")},
    "sun397": {"Partitions.zip": ("SUN397", "*.txt"), "SUN397.tar.gz": (".", "SUN397/?")},
    "svhn": {"train_32x32.mat": (".", ""), "test_32x32.mat": (".", "")},
    **{f"domainnet_{one}": {k.format(one): (base, what.format(one)) for k, (base, what)
                            in DOMAIN.items()}
       for one in ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")},
}  # fmt: skip


def packed(kind, base, names):
    """Bytes of an archive of files, each under its path below a folder."""
    stream = io.BytesIO()
    files = sorted(path for name in names for path in base.glob(name))
    if kind.endswith(".zip"):
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("__MACOSX/._x", b"left by another system")
            for path in files:
                for one in (path, *sorted(path.rglob("*"))):
                    archive.write(one, one.relative_to(base))
    else:
        with tarfile.open(fileobj=stream, mode="w" if kind.endswith(".tar") else "w:gz") as archive:
            for path in files:
                archive.add(path, path.relative_to(base))
    return stream.getvalue()


def published(name, root):
    """Content of the files that a dataset is published in, made of its miniature."""
    if name.startswith("caltech101"):
        inner = packed(".tar.gz", root / "caltech101", ["101_ObjectCategories"])
        outer = io.BytesIO()
        with zipfile.ZipFile(outer, "w") as archive:
            archive.writestr("caltech-101/101_ObjectCategories.tar.gz", inner)
            archive.writestr("caltech-101/Annotations.tar", b"boxes")
        return {"caltech-101.zip": outer.getvalue()}
    if name == "voc2007":
        place, found = root / "VOCdevkit" / "VOC2007", {}
        for part, splits in {"trainval": ("train", "val"), "test": ("test",)}.items():
            lists = [path for one in splits for path in place.glob(f"ImageSets/Main/*{one}.txt")]
            ids = [one for split in splits for one in
                   (place / f"ImageSets/Main/{split}.txt").read_text().split()]  # fmt: skip
            files = [*lists, *(place / "JPEGImages" / f"{one}.jpg" for one in ids)]
            names = [path.relative_to(root).as_posix() for path in files]
            found[f"VOC{part}_06-Nov-2007.tar"] = packed(".tar", root, names)
        return found
    found = {}
    for file, (base, names) in HELD[name].items():
        if names:
            found[file] = packed(file, root / base, [names])
        elif file.endswith(".gz"):
            found[file] = gzip.compress((root / base / file[:-3]).read_bytes())
        else:
            found[file] = (root / base / file).read_bytes()
    return found


@pytest.fixture
def publish(site, monkeypatch):
    """publish(entry, files): the entry, of which a server has the files and all sums are known."""

    def make(entry, files, **other):
        real = {url.rpartition("/")[2]: fetching._known().get(url, {}) for url in entry.urls}
        known = {}
        for name, content in files.items():
            site.files[f"/{name}"] = content
            digest = hashlib.md5(content).hexdigest()
            known[f"{site.url}/{name}"] = real.get(name, {}) | {"md5": digest} | other
            known[f"{site.url}/{name}"].pop("sha256", None)
        order = [url.rpartition("/")[2] for url in entry.urls] or list(files)
        monkeypatch.setattr(fetching, "_known", lambda: known)
        return replace(entry, urls=[f"{site.url}/{name}" for name in order])

    return make


def content(name, root, **options):
    """Labels and images of each split."""
    dataset = load_dataset(name, data_root=root, **options)
    splits = [dataset.split(split) for split in dataset.splits]
    return [(one.labels.tolist(), one.content) for one in splits]


@pytest.mark.parametrize("name", FETCHED)
def test_what_is_published_is_fetched_unpacked_found_and_read(
    name, tmp_path, lay, publish, site, monkeypatch
):
    lay(name, tmp_path / "origin")
    expected = content(name, tmp_path / "origin")
    entry = load.catalogue()[name]
    files = published(name, tmp_path / "origin")
    assert sorted(files) == sorted(url.rpartition("/")[2] for url in entry.urls)
    entry = publish(entry, files)
    monkeypatch.setattr(load, "catalogue", lambda: {name: entry})
    root = tmp_path / "root"
    seen = []
    if name == "caltech101":
        with pytest.raises(MissingDatasetError, match="the study's lists .* are not at"):
            content(name, root, download=True)
        for file in ("train.txt", "test.txt"):
            (root / name).mkdir(exist_ok=True)
            (tmp_path / "origin" / name / file).rename(root / name / file)
    got = content(name, root, download=True, progress=lambda *facts: seen.append(facts))
    assert got == expected
    assert status(entry, root) == "ready"
    assert not list(root.rglob("*.partial*"))
    assert all(0 < done <= total for _, done, total in seen)
    site.asked.clear()
    assert content(name, root, download=True) == expected
    assert site.asked == []


def birds(size=5):
    """A tar of folders, of 700 kB that do not compress, and what it should make of a folder."""
    tree = {f"birds/{kind}/{i}.jpg": os.urandom(70_000) for kind in ("a", "b") for i in range(size)}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in tree.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return tree, stream.getvalue()


def tree_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "birds.tar.gz"
    }


CALL = """
import sys, time
from pathlib import Path
from featstore.datasets import Entry, fetching
def stop(what, done, total):
    if what.startswith("unpacking") and done > total / 2:
        print("midway", flush=True)
        time.sleep(60)
moved = []
def move_some(self, target, move=Path.replace):
    if self.suffix == ".jpg":
        moved.append(self)
        if len(moved) == 4:
            print("midway", flush=True)
            time.sleep(60)
    return move(self, target)
if sys.argv[3] == "moving":
    Path.replace = move_some
entry = Entry("birds", "cub", urls=[sys.argv[1]])
progress = stop if sys.argv[3] == "unpacking" else None
list(fetching.fetch_files(entry, "train", Path(sys.argv[2]), progress))
"""


def start(site, root, stage):
    arguments = [sys.executable, "-c", CALL, f"{site.url}/birds.tar.gz", str(root), stage]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "nothing happened for 60 s"
        threading.Event().wait(0.01)


@pytest.mark.parametrize("stage", ["fetching", "unpacking", "moving"])
def test_after_a_kill_the_same_call_makes_the_same_tree(site, publish, tmp_path, stage):
    tree, data = birds()
    entry = publish(Entry("birds", "cub"), {"birds.tar.gz": data})
    folder = tmp_path / "birds"
    if stage == "fetching":
        site.gate.clear()  # the server stops after 300 kB
    if stage == "moving":
        (folder / "birds").mkdir(parents=True)  # so that no one rename does it
        (folder / "birds" / "b").mkdir()
    with start(site, tmp_path, stage) as process:
        if stage == "fetching":
            partial = folder / "birds.tar.gz.partial"
            wait_for(lambda: partial.exists() and partial.stat().st_size > 0)
        else:
            assert process.stdout.readline() == "midway\n"
        os.kill(process.pid, signal.SIGKILL)
    site.gate.set()
    site.asked.clear()
    if stage == "moving":
        assert 0 < len(tree_of(folder / "birds")) < len(tree)
    else:
        assert not (folder / "birds").exists()  # nothing that could pass for the whole
    assert fetching.unfinished(entry, "train", tmp_path) == (stage != "fetching")
    list(fetching.fetch_files(entry, "train", tmp_path))
    assert tree_of(folder) == tree
    assert not fetching.unfinished(entry, "train", tmp_path)
    assert (site.parts[:1] > [0]) if stage == "fetching" else (site.asked == [])


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"cut")])
def test_what_was_lost_or_cut_since_is_mended_without_the_network(site, publish, tmp_path, damage):
    tree, data = birds()
    entry = publish(Entry("birds", "cub"), {"birds.tar.gz": data})
    list(fetching.fetch_files(entry, "train", tmp_path))
    site.asked.clear()
    damage(tmp_path / "birds" / "birds" / "b" / "3.jpg")
    (tmp_path / "birds" / "birds" / "mine.txt").write_bytes(b"kept")
    list(fetching.fetch_files(entry, "train", tmp_path))
    assert tree_of(tmp_path / "birds") == tree | {"birds/mine.txt": b"kept"}
    assert site.asked == []


def test_what_is_whole_is_not_unpacked_again_and_nothing_strange_comes_with_it(tmp_path):
    tree, data = birds()
    (tmp_path / "birds.tar.gz").write_bytes(data)
    (tmp_path / "birds.partial" / "birds").mkdir(parents=True)
    (tmp_path / "birds.partial" / "birds" / "older.jpg").write_bytes(b"of another version")
    fetching.unpack(tmp_path / "birds.tar.gz", tmp_path)
    assert tree_of(tmp_path) == tree
    dates = [path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")]
    fetching.unpack(tmp_path / "birds.tar.gz", tmp_path)
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")] == dates


def test_half_a_set_without_lists_is_made_whole_where_unpacking_was_broken_off(
    site, publish, lay, tmp_path, monkeypatch
):
    lay("eurosat", tmp_path / "origin")
    expected = content("eurosat", tmp_path / "origin")
    entry = publish(load.catalogue()["eurosat"], published("eurosat", tmp_path / "origin"))
    monkeypatch.setattr(load, "catalogue", lambda: {"eurosat": entry})
    root = tmp_path / "root"
    lay("eurosat", root)
    for path in root.rglob("*_3.jpg"):
        path.unlink()
    (root / "eurosat" / "EuroSAT.partial" / "2750").mkdir(parents=True)
    assert content("eurosat", root, download=True) == expected


def test_what_two_processes_unpack_at_once_is_whole(tmp_path):
    tree, data = birds(40)
    (tmp_path / "birds.tar.gz").write_bytes(data)
    archive = tmp_path / "birds.tar.gz"
    threads = [threading.Thread(target=fetching.unpack, args=(archive, tmp_path)) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tree_of(tmp_path) == tree


def test_a_file_that_is_not_the_published_one_is_refused_by_name(publish, tmp_path):
    entry = publish(Entry("birds", "cub"), {"birds.tar.gz": birds()[1]}, md5="0" * 32)
    with pytest.raises(MissingDatasetError) as caught:
        list(fetching.fetch_files(entry, "train", tmp_path))
    assert str(caught.value).startswith("birds: birds.tar.gz could not be fetched")
    assert f"not {'0' * 32}" in str(caught.value)
    assert "MD5" in str(caught.value)
    assert tree_of(tmp_path) == {}


def evil(kind, name):
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("fine.txt", b"x")
            archive.writestr(name, b"evil")
        return stream.getvalue()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("fine.txt"))
        member = tarfile.TarInfo(name)
        if kind in ("link", "hard link"):
            member.name, member.linkname = "way/out", name
            member.type = tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE
            archive.addfile(member)
            member = tarfile.TarInfo("way/out/evil")
        if kind == "device":
            member.type = tarfile.FIFOTYPE
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, name) for kind in ("zip", "tar")
          for name in ("../evil", "a/../../evil", "/evil", "a\\..\\..\\evil")),
        *(("link", ".."), ("hard link", "/etc/passwd"), ("device", "pipe")),
    ],
)  # fmt: skip
def test_an_archive_that_leads_out_of_its_folder_is_refused(tmp_path, kind, name):
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    archive = folder / ("x.zip" if kind == "zip" else "x.tar")
    archive.write_bytes(evil(kind, name.replace("/evil", f"{tmp_path}/evil", name[0] == "/")))
    with pytest.raises(MissingDatasetError, match=f"{archive} cannot be unpacked"):
        fetching.unpack(archive, folder)
    assert [path.name for path in folder.iterdir() if path.suffix != ".partial"] == [archive.name]
    assert [path for path in tmp_path.rglob("*") if path.is_symlink() or "evil" in path.name] == []


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz", "x.tar.gz", "x.gz"])
@pytest.mark.parametrize("cut", [7, 60, 3000])
def test_a_damaged_archive_is_named_and_leaves_nothing_that_could_pass_for_it(tmp_path, name, cut):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a.jpg").write_bytes(os.urandom(9000))
    whole = packed(name, tmp_path / "from", ["a.jpg"])
    if name == "x.gz":
        whole = gzip.compress(os.urandom(9000))
    archive = tmp_path / name
    archive.write_bytes(whole[:cut])
    with pytest.raises(MissingDatasetError, match=f"{archive} cannot be unpacked .* Delete it"):
        fetching.unpack(archive, tmp_path)
    assert not (tmp_path / "a.jpg").exists()
    assert not (tmp_path / "x").exists()


def test_where_there_is_no_room_that_is_said(tmp_path, monkeypatch):
    (tmp_path / "birds.tar.gz").write_bytes(birds()[1])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching.shutil, "copyfileobj", full)
    with pytest.raises(MissingDatasetError, match=r"could not be unpacked to .*No space .*room"):
        fetching.unpack(tmp_path / "birds.tar.gz", tmp_path)


def test_an_address_with_an_odd_name_stays_in_its_folder(site, tmp_path):
    entry = Entry("birds", "cub", urls=[f"{site.url}/a/..%2F..%2Fevil.txt?x=/y"])
    with pytest.raises((MissingDatasetError, ValueError)):
        list(fetching.fetch_files(entry, "train", tmp_path))
    assert not any(path.name == "evil.txt" for path in tmp_path.rglob("*"))


def test_only_what_a_split_needs_is_fetched(site, publish, lay, tmp_path, monkeypatch):
    lay("inaturalist", tmp_path / "origin")
    entry = load.catalogue()["inaturalist"]
    entry = publish(entry, published("inaturalist", tmp_path / "origin"))
    monkeypatch.setattr(load, "catalogue", lambda: {"inaturalist": entry})
    load_dataset("inaturalist", data_root=tmp_path / "root", download=True).split("test")
    assert [path for path, _ in site.asked] == ["/val.tar.gz"]


@pytest.fixture
def mine(lay, publish, site, tmp_path, monkeypatch):
    """A set of which one is fetched, one is not served, one is had by hand, one is for later."""
    lay("cub", tmp_path / "origin")
    files = published("cub", tmp_path / "origin")
    small = load.catalogue()
    entries = {name: replace(small[name], sets=["mine"]) for name in ("dtd", "chestx", "ade20k")}
    entries["dtd"] = replace(entries["dtd"], urls=[f"{site.url}/dtd.tar.gz"])
    entries["cub"] = publish(replace(small["cub"], sets=["mine"]), files)
    for place in ("featstore.datasets.catalogue", "featstore.datasets.load.catalogue"):
        monkeypatch.setattr(place, lambda: entries)
    return tmp_path / "root"


def test_of_a_set_all_is_fetched_that_can_be_and_of_the_rest_said_why(mine, call, site):
    code, out, err = call("datasets", "mine", "--download", "--data-root", mine)
    assert code == 1
    assert out.splitlines() == [
        f"chestx  by hand: {catalogue()['chestx'].by_hand}",
        f"ade20k  later: {catalogue()['ade20k'].urls[0]}",
        "cub  ready",
    ]
    assert err.startswith(f"dtd  failed: dtd: dtd.tar.gz could not be fetched ({site.url}/dtd.tar")
    assert err.count("\n") == 1
    assert (mine / "cub" / "CUB_200_2011" / "images.txt").exists()
    code, out, _ = call("datasets", "mine@own", "--download", "--data-root", mine, "--json")
    told = json.loads(out)
    assert (code, told["cub"], told["dtd"][:6]) == (1, "ready", "failed")
    code, out, _ = call("datasets", "cub", "--download", "--data-root", mine, "--json")
    facts = json.loads(out)
    assert (code, facts["status"], facts["test"]) == (0, "ready", "3 images, 3 categories")


def test_fetching_without_a_name_or_with_a_condition_is_refused(mine, call):
    for arguments in (("--download",), ("mine", "--download", "-w", "task=dense")):
        code, out, err = call("datasets", *arguments)
        assert (code, out) == (2, "")
        assert "--download takes the name of a dataset or a set" in err


def test_what_is_known_of_a_file_is_of_one_that_the_catalogue_names():
    urls = {url for name in FETCHED for url in catalogue()[name].urls}
    assert set(fetching._known()) == urls
    for url, known in fetching._known().items():
        assert set(known) <= {"md5", "sha256", "into", "splits"}
        assert len(known.get("md5", "0" * 32)) == 32
        assert not Path(known.get("into", "")).is_absolute()
        assert {"md5", "sha256"} & set(known) or url.endswith(("2013b.tar.gz", "Partitions.zip"))
