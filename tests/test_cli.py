"""The command line as a user meets it: real processes, real files, exit statuses."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.main import get_command
from typer.testing import CliRunner

import featstore
from featstore import cli
from featstore.cli.options import parse_size

COMMANDS = sorted(get_command(cli.app).commands)
MAIN = [sys.executable, "-c", "from featstore.cli import main; main()"]


@pytest.fixture
def run(tmp_path, monkeypatch, call):
    """A command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return call


def write_images(root, *, classes=("ant", "bee"), per_class=15, splits=("train", "test")):
    rng = np.random.default_rng(1)
    for split in splits:
        for number, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
                pixels[..., number % 3] += 120
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture
def photos(tmp_path):
    return write_images(tmp_path / "photos")


EXTRACT = ("extract", "-m", "tiny-vit-random", "-d", "folder:photos")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_an_example(command):
    found = CliRunner().invoke(cli.app, [command, "--help"])
    assert found.exit_code == 0
    assert f"Example: featstore {command}" in " ".join(found.output.split())
    assert len(get_command(cli.app).commands[command].help) > 30


def test_every_command_stands_in_the_readme():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert [c for c in COMMANDS if f"featstore {c}" not in readme] == []


def test_from_images_to_a_report(run, photos):
    status, out, _ = run(
        *EXTRACT, "-m", "tiny-resnet-random", "--bn-mode", "eval", "--bn-mode", "adapt"
    )
    assert status == 0
    assert "6 splits filled, 0 up to date; 60 images decoded" in out
    status, out, _ = run("probe", "-p", "knn-marks", "-p", "ridge", "--scheduler", "sync")
    assert status == 0
    assert out.startswith("6 cells filled, 0 up to date, 0 failed")
    status, out, _ = run("probe", "-p", "knn-marks", "-p", "ridge", "--json")
    assert (status, json.loads(out)["up_to_date"]) == (0, 6)
    scores = featstore.open_results("data/results").score
    assert float(scores.min()) > 0.8  # the classes differ by their tint
    assert run("report")[0] == 0
    assert "<html" in Path("data/report.html").read_text()[:200].lower()
    assert run("export", "--format", "csv", "--out", "cells.csv")[0] == 0
    assert len(Path("cells.csv").read_text().splitlines()) == 1 + 8  # vit under both modes
    status, out, _ = run("ls")
    assert len(out.splitlines()) == 1 + 6
    status, out, _ = run("verify")
    assert (status, out) == (0, "6 splits checked, 0 faults\n")
    status, out, _ = run("why", "tiny-vit-random folder:photos eval")
    assert out.count("as it would be extracted now") == 2
    assert run("rm", "tiny-vit-random folder:photos eval", "--yes")[0] == 0
    assert len(run("ls")[1].splitlines()) == 1 + 4


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["models"], "tiny-resnet-simclr"),
        (["models", "tiny-resnet-simclr"], "contrastive"),
        (["datasets"], "cifar10"),
        (["datasets", "digits"], "1000 images, 10 categories"),
        (
            ["datasets", "cifar10", "--data-root", "nowhere"],
            "featstore datasets cifar10 --download",
        ),
        (["protocols"], "linear-marks-1view-bn"),
        (["protocols", "knn-marks+k=7"], "7"),
        (["--version"], featstore.__version__),
    ],
)
def test_listings_show_what_there_is(run, arguments, shown):
    status, out, _ = run(*arguments)
    assert status == 0
    assert shown in out


@pytest.mark.parametrize("command", ["models", "datasets", "protocols", "ls"])
def test_json_is_one_line(run, command):
    status, out, _ = run(command, "--json")
    assert status == 0
    assert len(out.splitlines()) == 1
    json.loads(out)


def refused(found, status, *parts):
    """The run ended with this status and one line that holds these parts."""
    assert found[0] == status, found
    lines = found[2].splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("featstore: ")
    for part in parts:
        assert part in lines[0], (part, lines[0])


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["extract", "-m", "tiny-resnet-simcl", "-d", "digits"],
         ["unknown model 'tiny-resnet-simcl'", "Did you mean tiny-resnet-simclr"]),
        (["extract", "-m", "timm:resnet5", "-d", "digits"], ["'resnet5'", "mean", "resnet50"]),
        (["extract", "-m", "tiny-vit-mae@clss", "-d", "digits"], ["embedding site @clss", "@cls"]),
        (["extract", "-m", "file:x.pt", "-d", "digits"], ["file:PATH#arch=NAME"]),
        (["extract", "-m", "tiny", "-d", "digit"], ["unknown dataset 'digit'", "mean digits"]),
        (["extract", "-m", "tiny", "-d", "digits", "--split", "training"], ["no split 'training'"]),
        (["extract", "-m", "tiny", "-d", "digits", "--dtype", "int8"], ["dtype must be"]),
        (["probe", "-p", "finetune-marks+epochs=5"],
         ["featstore finetune -p finetune-marks+epochs=5 -m MODEL -d DATASET"]),
        (["finetune", "-m", "tiny-vit-simclr", "-d", "digits", "-p", "knn-marks+k=5"],
         ["answered off the store", "featstore probe -p knn-marks+k=5"]),
        (["finetune", "-m", "tiny-vit-simclr", "-d", "digits", "-p", "core"],
         ["featstore probe -p core"]),
        (["probe", "-p", "knn-mark"], ["unknown protocol 'knn-mark'", "Did you mean knn-marks"]),
        (["protocols", "logregg"], ["unknown protocol", "logreg"]),
        (["models", "tiny-vit"], ["unknown model"]),
        (["why", "just two"], ["MODEL DATASET BN_MODE"]),
        (["extract", "-m", "tiny", "-d", "digits", "--device", "gpu"], ["auto, cpu or cuda:N"]),
        (["extract", "-m", "tiny", "-d", "folder:"], ["folder: names no folder"]),
        (["probe", "--scheduler", "nonsense"], ["scheduler must be", "got 'nonsense'"]),
        (["probe", "--scheduler", "local:0"], ["scheduler must be"]),
        (["probe", "--device", "gpu"], ["device must be cpu, cuda or cuda:N"]),
        (["probe", "--seed", "-1"], ["seeds must be 0 or more"]),
        (["probe", "-p", "knn-marks+metric=x"], ["metric must be one of"]),
        (["probe", "-p", "ridge+normalisation=bn"], ["normalisation must be one of"]),
        (["probe", "-p", "logreg+held_out=0.9"], ["held_out must lie in"]),
        (["probe", "-p", "linear-marks-1view+epochs=0"], ["epochs, batch_size and hidden"]),
    ],
)  # fmt: skip
def test_wrong_words_are_refused_with_status_2(run, arguments, parts):
    refused(run(*arguments), 2, *parts)


def test_places_that_are_files_or_absent_are_named(run, photos, tmp_path):
    (tmp_path / "afile").touch()
    refused(run(*EXTRACT, "--store", "afile"), 1, "afile is a file, not a store")
    refused(run("probe", "--results", "afile"), 1, "afile is a file", "--results")
    refused(run("verify", "--store", "nowhere"), 1, "no store at nowhere")
    refused(run("report", "--results", "nowhere"), 1, "no results in nowhere", "featstore probe")
    assert run(*EXTRACT)[0] == 0
    assert run("probe", "-p", "knn-marks")[0] == 0
    refused(run("export", "--out", "no/such/folder/x.csv"), 1, "no/such/folder")
    refused(run("probe", "-m", "tiny-vit-randon"), 2, "unknown model", "tiny-vit-random")


def test_a_damaged_split_is_listed_and_can_be_removed(run, photos, tmp_path):
    assert run(*EXTRACT)[0] == 0
    document = next((tmp_path / "data" / "features.zarr").glob("*/*/*/train/zarr.json"))
    document.write_text("{")
    assert "damaged" in run("ls")[1]
    status, out, _ = run("verify")
    assert status == 1
    assert "its zarr.json cannot be read" in out
    assert run("rm", "tiny-vit-random folder:photos eval", "--yes")[0] == 0
    assert run(*EXTRACT)[0] == 0
    assert run("verify")[0] == 0


def test_weights_of_ones_own_do_not_pass_for_the_catalogues(run, photos, tmp_path):
    state = featstore.create_backbone("tiny-vit", seed=5).state_dict()
    save_file(state, tmp_path / "mine.safetensors")
    assert run("extract", "-m", "tiny-vit-simclr", "-d", "folder:photos",
               "--weights", "mine.safetensors")[0] == 0  # fmt: skip
    (key,) = featstore.Store("data/features.zarr").keys()
    assert key.model == "tiny-vit-simclr~mine"
    split = next(featstore.Store("data/features.zarr").splits())
    assert split.attrs["model"]["family"] == ""


def test_a_folder_that_is_absent_empty_or_lacks_images_is_named(run, tmp_path):
    refused(run(*EXTRACT), 1, "no folder at", "photos")
    (tmp_path / "photos").mkdir()
    refused(run(*EXTRACT), 1, "holds no images", "photos")
    write_images(tmp_path / "photos")
    (tmp_path / "photos" / "train" / "cow").mkdir()
    refused(run(*EXTRACT), 1, "photos/train/cow holds no image")
    (tmp_path / "photos" / "train" / "cow").rmdir()
    (tmp_path / "photos" / "test" / "dog").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / "test" / "dog" / "0.png")
    refused(run(*EXTRACT), 1, "has the class 'dog'", "lacks")
    assert not (tmp_path / "data" / "features.zarr").exists()


def test_a_truncated_jpeg_stops_and_is_named_or_is_masked_and_counted(run, photos):
    path = photos / "train" / "ant" / "3.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:600])
    refused(run(*EXTRACT), 1, "photos/train/ant/3.jpg is truncated", "--skip-errors")
    assert run(*EXTRACT, "--skip-errors")[0] == 0
    assert run("probe", "-p", "knn-marks")[0] == 0
    cell = featstore.open_results("data/results")
    assert float(cell.n_skipped.max()) == 1
    assert float(cell.n_train.max()) == 30


def test_checkpoints_that_do_not_fit_or_are_not_safe_are_refused(run, photos, tmp_path):
    state = featstore.create_backbone("tiny-vit", seed=0).state_dict()
    state["extra.weight"] = state.pop("norm.weight")
    save_file(state, tmp_path / "bad.safetensors")
    bad = ("extract", "-m", "file:bad.safetensors#arch=tiny-vit", "-d", "folder:photos")
    refused(run(*bad), 1, "1 missing: norm.weight", "1 unexpected: extra.weight")
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    evil = ("extract", "-m", "file:evil.pt#arch=tiny-vit", "-d", "folder:photos")
    refused(run(*evil), 1, "evil.pt is not safe to load")
    assert not (tmp_path / "ran").exists()
    gone = ("extract", "-m", "file:gone.pt#arch=tiny-vit", "-d", "folder:photos")
    refused(run(*gone), 1, "no weights at gone.pt")


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


def test_a_store_of_another_recipe_or_version_is_refused(run, photos, tmp_path):
    assert run(*EXTRACT)[0] == 0
    refused(
        run(*EXTRACT, "--dtype", "float32"),
        1,
        "dtype: stored 'float16', now 'float32'",
        "--variant",
    )
    assert run("verify")[0] == 0
    meta = tmp_path / "data" / "features.zarr" / "zarr.json"
    meta.write_text(meta.read_text().replace('"featstore_format": 1', '"featstore_format": 2'))
    refused(run(*EXTRACT), 1, "format version 2, this featstore reads 1")
    refused(run("probe"), 1, "format version 2")


def test_probing_what_is_not_or_half_extracted_says_what_to_run(run, photos):
    refused(run("probe"), 1, "no features in", "featstore extract -m MODEL")
    assert run(*EXTRACT, "--split", "train")[0] == 0
    status, _, err = run("probe", "-p", "knn-marks")
    assert status == 1
    assert "no finished features for tiny-vit-random folder:photos eval test" in err
    assert run(*EXTRACT)[0] == 0
    status, _, err = run("probe", "-m", "tiny-vit-mae", "-d", "folder:photos", "-p", "knn-marks")
    assert status == 1
    assert "no finished features for tiny-vit-mae folder:photos eval" in err
    assert "Run: featstore extract -m tiny-vit-mae -d folder:photos" in err


def test_half_extracted_features_say_how_far_they_came(run, photos):
    assert run(*EXTRACT, "--chunk-rows", "8")[0] == 0
    place = next(Path("data/features.zarr").glob("*/*/*/test"))
    document = place / "zarr.json"
    content = json.loads(document.read_text())
    del content["attributes"]["complete"]
    document.write_text(json.dumps(content))
    (place / "chunk_digest" / "c" / "0").unlink()
    status, _, err = run("probe", "-p", "knn-marks")
    assert status == 1
    assert "eval test (stopped at row 22 of 30)" in err


def test_a_cell_that_cannot_be_filled_fails_alone(run, photos):
    assert run(*EXTRACT)[0] == 0
    status, out, err = run("probe", "-p", "knn-marks", "-p", "knn-dino-k200")
    assert status == 1
    assert "1 cells filled, 0 up to date, 1 failed" in out
    assert "knn-dino-k200" in err
    assert "k must lie in 1..30 (rows of the train split), got 200" in err


def test_protocols_of_a_set_that_are_too_much_for_few_rows_are_left_out(run, photos):
    assert run(*EXTRACT)[0] == 0
    status, out, err = run("probe", "-p", "dino", "--json")
    done = json.loads(out)
    assert (status, done["filled"], done["failed"]) == (0, 2, [])
    assert [one["what"].split()[3] for one in done["not_applicable"]] == [
        "knn-dino-k200",
        "knn-dino-k100",
    ]
    assert (
        "featstore: left out 1 cells: k must lie in 1..30 (rows of the train split), got 100" in err
    )


def test_one_class_only_is_refused(run, tmp_path):
    write_images(tmp_path / "photos", classes=("ant",))
    assert run(*EXTRACT)[0] == 0
    status, _, err = run("probe", "-p", "ridge")
    assert status == 1
    assert "one category only" in err


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_committed(photos, tmp_path):
    write_images(tmp_path / "many", per_class=400)
    arguments = ["extract", "-m", "tiny-resnet-random", "-d", "folder:many", "--chunk-rows", "16"]
    child = subprocess.Popen(
        [*MAIN, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        store = tmp_path / "data" / "features.zarr"
        deadline = time.monotonic() + 120
        while not list(store.glob("*/*/*/*/chunk_digest/c/*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
        assert child.returncode == 130, err
    assert err.splitlines()[-1].startswith("featstore: interrupted; all that was committed is kept")
    assert "Traceback" not in err
    done = sum(split.rows_done for split in featstore.Store(store).splits())
    assert 0 < done < 1600
    found = subprocess.run(
        [*MAIN, *arguments, "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert json.loads(found.stdout)["images"] == 1600 - done


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
def test_a_real_full_disk_loses_nothing(photos, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no tmpfs may be mounted here")
    try:
        write_images(tmp_path / "many", per_class=300)
        arguments = ["extract", "-m", "tiny-resnet-random", "-d", "folder:many", "--store",
                     str(small / "f.zarr"), "--chunk-rows", "32", "--dtype", "float32"]  # fmt: skip
        found = subprocess.run([*MAIN, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert found.returncode == 1
        assert "No space left on device" in found.stderr
        assert "Traceback" not in found.stderr
        done = {s.name: s.rows_done for s in featstore.Store(small / "f.zarr").splits()}
        assert sum(done.values()) > 0
        subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
        found = subprocess.run(
            [*MAIN, *arguments, "--json"], cwd=tmp_path, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout)["images"] == 1200 - sum(done.values())
        splits = list(featstore.Store(small / "f.zarr").splits())
        assert [split.verify() for split in splits] == [[], []]
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.slow
def test_progress_is_shown_on_a_terminal_with_rate_and_time_left(photos, tmp_path):
    write_images(tmp_path / "many", per_class=300)
    leader, follower = pty.openpty()
    arguments = ["extract", "-m", "tiny-resnet-random", "-d", "folder:many"]
    wide = os.environ | {"COLUMNS": "120"}
    child = subprocess.Popen(
        [*MAIN, *arguments], cwd=tmp_path, stderr=follower, stdout=subprocess.DEVNULL, env=wide
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert child.wait() == 0
    assert b"images/s" in shown
    assert b"folder:many" in shown


def test_without_a_terminal_nothing_is_drawn(run, photos):
    status, _, err = run(*EXTRACT)
    assert (status, err) == (0, "")


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("500 MB", 500 * 10**6), ("1.5GiB", 3 * 2**29), ("64B", 64)],
)
def test_sizes_are_read_as_they_are_written(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["8", "eight GB", "-1GB", "1.2.3GB", "8gb", ".GB"])
def test_what_is_no_size_is_refused_in_one_line(text, call, tmp_path):
    status, _, err = call("probe", "--device-memory", text, "--store", tmp_path / "s.zarr")
    assert status in (1, 2)
    assert f"a size is written as 8GB or 500MiB, got {text!r}" in err
    assert "Traceback" not in err
