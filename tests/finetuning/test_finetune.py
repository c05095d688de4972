"""Cells of fine-tuning: what is recorded, what is not done twice, what fails without the rest."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score

import featstore
from featstore import finetuning
from featstore.errors import UnknownNameError
from featstore.finetuning import train
from featstore.finetuning.data import rows_digest
from featstore.finetuning.measure import Work
from featstore.finetuning.net import Net
from featstore.results import outcomes_of, records

from .conftest import toy, toy_split, work_of

RESNET, VIT = "tiny-resnet-random", "tiny-vit-random"
SHORT = "finetune-tiny+epochs=2+batch_size=8"


def run(root, protocols=(SHORT,), models=(RESNET,), datasets=("toy",), **options):
    options = {"device": "cpu", "num_workers": 0} | options
    return featstore.finetune(models, datasets, protocols=protocols, results=root, **options)


def spy_on_scores(monkeypatch):
    """Split, rows and log-probabilities of each time that a network is scored."""
    found, plain = [], Work.scores

    def scores(self, net, split, rows):
        found.append((split, rows, plain(self, net, split, rows)))
        return found[-1][2]

    monkeypatch.setattr(Work, "scores", scores)
    return found


def one_record(root):
    (document,) = (one for one in records(root) if "diverged" not in one["certificate"])
    return document, outcomes_of(document)


def test_a_cell_has_the_metrics_of_its_test_images_and_says_how_it_was_made(tmp_path, use):
    use(toy(metric="mean_per_class"))
    done = run(tmp_path / "r", seeds=[3])
    assert (done.filled, done.up_to_date, done.failed) == (1, 0, [])
    document, kept = one_record(tmp_path / "r")
    assert kept["index"].tolist() == list(range(24))
    labels = toy().split("test").labels
    np.testing.assert_array_equal(kept["label"], labels)
    guess = kept["top5"][:, 0]
    values = {name: found["value"] for name, found in document["metrics"].items()}
    assert values["top1"] == accuracy_score(labels, guess)
    assert values["mean_per_class"] == pytest.approx(balanced_accuracy_score(labels, guess))
    assert values["top5"] == 1  # of three categories
    assert {"ece", "ece_scaled"} <= set(values)
    np.testing.assert_allclose(np.exp(kept["top5_score"][:, :3]).sum(axis=1), 1, atol=1e-5)
    assert document["headline"] == "mean_per_class"
    assert (document["n_train"], document["n_test"], document["n_categories"]) == (24, 24, 3)
    assert (document["bn_mode"], document["seed"]) == ("eval", 3)
    assert (document["settings"]["kind"], document["settings"]["scale"]) == ("finetune", "share")
    certificate = document["certificate"]
    assert len(certificate["loss"]) == len(certificate["accuracy"]) == 2
    assert not (tmp_path / "r" / ".finetune").exists() or not any(
        (tmp_path / "r" / ".finetune").iterdir()
    )
    shown = featstore.open_results(tmp_path / "r").sel(dataset="toy")
    assert float(shown.score.squeeze()) == pytest.approx(values["mean_per_class"])
    assert done.results == str(tmp_path / "r.zarr")


def test_nothing_is_done_twice_unless_asked_for(tmp_path, use):
    use(toy())
    epochs = []
    options = {"callbacks": [epochs.append], "seeds": [0, 1]}
    protocols = [SHORT, f"linear-marks{SHORT[13:]}"]
    assert run(tmp_path, protocols, **options).filled == 4
    assert len(epochs) == 8
    assert set(epochs[0]) == {"cell", "training", "epoch", "step", "loss", "accuracy", "lr"}
    assert (epochs[1]["epoch"], epochs[1]["step"], epochs[1]["training"]) == (2, 6, 0)
    again = run(tmp_path, protocols, **options)
    assert (again.filled, again.up_to_date, len(epochs)) == (0, 4, 8)
    first = {d["path"]: outcomes_of(d) for d in records(tmp_path)}
    assert run(tmp_path, protocols, overwrite=True, **options).filled == 4
    for document in records(tmp_path):
        for name, value in outcomes_of(document).items():
            np.testing.assert_array_equal(value, first[document["path"]][name])


def test_what_changes_the_result_changes_the_cell(tmp_path, use):
    digest = work_of(SHORT).digest
    assert work_of(SHORT).digest == digest
    assert work_of(SHORT, accumulate=2, num_workers=3, channels_last=True).digest == digest
    others = [
        work_of(SHORT.replace("epochs=2", "epochs=3")),
        work_of(SHORT, dataset=toy(seed=1)),
        work_of(SHORT, VIT),
        work_of(SHORT, precision="bf16"),
        work_of(SHORT, "tiny-resnet-simclr"),
    ]
    assert len({digest, *(work.digest for work in others)}) == 6


def test_a_subset_is_recorded(tmp_path, use):
    use(toy())
    run(tmp_path, [f"{SHORT}+fraction=0.5"], seeds=[1])
    document, _ = one_record(tmp_path)
    rng = np.random.RandomState(43)
    labels = toy().split("train").labels
    rows = sorted(
        np.hstack([rng.choice(np.where(labels == k)[0], 4, replace=False) for k in range(3)])
    )
    expected = {"per_category": 4, "seed": 43, "images": 12, "sha256": rows_digest(rows)}
    assert document["certificate"]["subset"] == expected
    assert document["n_train"] == 12


def test_options_change_names_as_overrides_do(tmp_path, use):
    use(toy())
    run(tmp_path, ["finetune-tiny"], epochs=1, fraction=0.5)
    assert one_record(tmp_path)[0]["protocol"] == "finetune-tiny+fraction=0.5+epochs=1"


def test_a_cell_that_fails_leaves_the_others(tmp_path, use, monkeypatch):
    use(toy())
    wild = f"{SHORT}+lr=inf"
    little = f"{SHORT}+fraction=0.1"
    done = run(tmp_path, [wild, little, SHORT])
    assert done.filled == 1
    diverged, none = done.failed
    assert "toy eval " + wild in diverged.what
    assert "no finite number at step 2 of 6, in epoch 1" in diverged.error
    assert run(tmp_path, [wild]).up_to_date == 1  # not trained again
    assert "--fraction 0.125" in none.error
    assert run(tmp_path, ["tiny"], fraction=0.01).failed == []  # asked for by the set's name
    assert len(run(tmp_path, ["tiny"], fraction=0.01).not_applicable) == 4
    without, document = sorted(records(tmp_path), key=lambda one: -len(one["protocol"]))
    assert document["protocol"] == SHORT
    assert without["certificate"]["diverged"] == diverged.error
    scores = featstore.open_results(tmp_path).score.sel(protocol=[wild, SHORT])
    assert scores.isnull().squeeze().values.tolist() == [True, False]


def test_a_last_step_that_goes_too_far_is_no_score(tmp_path, use):
    use(toy())
    (failure,) = run(tmp_path, ["finetune-tiny+lr=1e30+clip=0+warmup=0"], steps=1).failed
    assert "after the last step" in failure.error
    scores = featstore.open_results(tmp_path).top1
    assert scores.isnull().all()


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("shots=2+fraction=0.5", "give shots or a fraction"),
        ("clip=-1", "at least 0"),
        ("lr_head=-1", "at least 0"),
        ("weight_decay=-1", "at least 0"),
        ("momentum=0+nesterov=true", "above 0 with nesterov"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_training(tmp_path, setting, fault):
    with pytest.raises(UnknownNameError, match=fault):
        run(tmp_path, [f"{SHORT}+{setting}"])


def test_more_images_of_each_category_than_there_are_do_not_apply(tmp_path, use):
    use(toy())
    (failure,) = run(tmp_path, [f"{SHORT}+shots=500"]).failed
    assert "500 train images of each category are asked for" in failure.error


def test_what_a_dataset_lacks_is_said(tmp_path, use):
    use(replace(toy(), transform="ericsson-fewshot"))
    (failure,) = run(tmp_path, ["finetune-marks"]).failed
    assert "toy publishes no augmentation to train by" in failure.error
    use(toy(("train", "val")))
    done = run(tmp_path, [SHORT])
    assert "toy has train, val, not train and test" in done.failed[0].error
    assert done.results == ""


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 bytes")],
)
def test_out_of_memory_says_what_to_do(error, tmp_path, use, monkeypatch):
    use(toy())

    def forward(self, images):
        if len(images) > 4:
            raise error
        return self.head(self.backbone(images.float()))

    monkeypatch.setattr(Net, "forward", forward)
    (failure,) = run(tmp_path).failed
    assert "out of memory" in failure.error
    assert "a batch of 8 in 1 parts. Give --accumulate 2" in failure.error
    assert run(tmp_path, accumulate=2).filled == 1


def write_folder(root):
    """The toy dataset as files."""
    for name in ("train", "test"):
        split = toy_split(name)
        for i, label in enumerate(split.labels):
            place = root / name / split.categories[label]
            place.mkdir(parents=True, exist_ok=True)
            split.read(i).save(place / f"{i}.png")
    return root


def test_an_image_that_cannot_be_read_is_named(tmp_path, use):
    photos = write_folder(tmp_path / "photos")
    assert run(tmp_path / "r", datasets=[f"folder:{photos}"], num_workers=1).filled == 1
    broken = next((photos / "train" / "b").iterdir())
    broken.write_bytes(broken.read_bytes()[:60])
    (failure,) = run(tmp_path / "r", datasets=[f"folder:{photos}"]).failed
    assert str(broken) in failure.error


def test_several_labels_an_image(tmp_path, use):
    rng = np.random.default_rng(0)

    def labels(kinds):  # the category, and one by chance that may be difficult
        found = np.eye(3, dtype=np.int8)[kinds]
        found[np.arange(len(kinds)), (kinds + 1) % 3] = rng.integers(-1, 1, len(kinds))
        return found

    use(toy(metric="map11", labels=labels))
    assert run(tmp_path, ["finetune-tiny+epochs=12+batch_size=8"]).failed == []
    document, kept = one_record(tmp_path)
    assert document["headline"] == "map11"
    assert document["metrics"]["map11"]["value"] > 0.9
    assert kept["scores"].shape == kept["label"].shape == (24, 3)
    assert set(np.unique(kept["label"])) == {-1, 0, 1}
    (failure,) = run(tmp_path, [f"{SHORT}+fraction=0.5"]).failed
    assert "those of toy have several" in failure.error


@pytest.mark.parametrize(("model", "smoothing"), [(RESNET, 0.0), (VIT, 0.1)])
def test_labels_are_smoothed_for_transformers_alone(model, smoothing, tmp_path, use):
    use(toy())
    # One batch of all images; a head wide enough that smoothing is seen in its first loss.
    protocol = "finetune-marks+steps=1+warmup=0+batch_size=24+crop=centre+drop_path=0+head_std=1"
    assert run(tmp_path, [protocol], [model]).filled == 1
    document, _ = one_record(tmp_path)
    assert document["settings"]["label_smoothing"] == 0.1  # as published, of both
    train = toy().split("train")
    images = torch.from_numpy(train.read.pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        log_p = work_of(protocol, model).net().train()(images).log_softmax(dim=1).double().numpy()
    truth = np.eye(3)[train.labels]
    losses = [
        -np.mean(np.sum(((1 - share) * truth + share / 3) * log_p, axis=1)) for share in (0, 0.1)
    ]
    assert abs(losses[0] - losses[1]) > 1e-3
    found = document["certificate"]["loss"]
    assert found == pytest.approx([losses[smoothing > 0]], abs=1e-5)


GRID = "finetune-ericsson+steps=4+batch_size=8+lrs=inf,0.01,0.02+decays=0.0"


@pytest.mark.parametrize("official", [True, False])
def test_validation_chooses_and_train_with_validation_is_trained_on(
    official, tmp_path, use, monkeypatch, assert_least_loss
):
    use(toy(("train", "val", "test") if official else ("train", "test")))
    shown, plain = [], Work.samples
    monkeypatch.setattr(
        Work, "samples", lambda self, parts, crop: shown.append(parts) or plain(self, parts, crop)
    )
    found = spy_on_scores(monkeypatch)
    done = run(tmp_path, [GRID])
    assert done.failed == []
    held = [] if official else np.random.RandomState(0).permutation(24)[:4].tolist()
    kept = [row for row in range(24) if row not in held]
    everything = [("train", list(range(24))), *([("val", list(range(24)))] * official)]
    seen = [[(name, rows.tolist()) for name, rows in parts] for parts in shown]
    assert seen == [[("train", kept)]] * 6 + [everything]
    document, _ = one_record(tmp_path)
    certificate = document["certificate"]
    tried = certificate["tried"]
    assert [one["crop"] for one in tried] == ["random"] * 3 + ["centre"] * 3
    scores = [one["score"] for one in tried]
    assert scores[0] is scores[3] is None  # that rate diverges, and is not chosen
    best = max(score for score in scores if score is not None)
    chosen = tried[scores.index(best)]
    assert certificate["chosen"] == {k: v for k, v in chosen.items() if k != "score"}
    assert certificate["held_out_rows"] == (24 if official else 4)
    assert document["n_train"] == (48 if official else 24)
    assert all((s * certificate["held_out_rows"]) % 1 < 1e-9 for s in scores if s is not None)
    split, rows, unseen = [one for one in found if one[0] != "test"][  # of those not diverged
        [score for score in scores if score is not None].index(best)
    ]
    assert (split, len(rows)) == (("val", 24) if official else ("train", 4))
    assert_least_loss(certificate["temperature"], unseen, toy_split(split).labels[rows])
    assert document["metrics"]["ece_scaled_val"]["value"] >= 0


def test_where_nothing_is_chosen_an_official_val_split_fits_the_temperature_alone(
    tmp_path, use, monkeypatch, assert_least_loss
):
    found = spy_on_scores(monkeypatch)
    documents = {}
    for splits in (("train", "test"), ("train", "val", "test")):
        use(toy(splits))
        run(tmp_path / str(len(splits)), [SHORT])
        documents[len(splits)], _ = one_record(tmp_path / str(len(splits)))
    assert documents[2]["metrics"]["ece"] == documents[3]["metrics"]["ece"]  # the same training
    assert documents[3]["n_train"] == 24
    assert "ece_scaled_val" not in documents[2]["metrics"]
    ((_, rows, unseen),) = (one for one in found if one[0] == "val")
    temperature = documents[3]["certificate"]["temperature"]
    assert_least_loss(temperature, unseen, toy_split("val").labels[rows])
    use(toy(("train", "val", "test")))
    run(tmp_path / "part", [f"{SHORT}+fraction=0.5"])
    assert "ece_scaled_val" not in one_record(tmp_path / "part")[0]["metrics"]  # more labels


def test_a_grid_goes_on_with_the_training_it_was_at(tmp_path, use, monkeypatch):
    use(toy())

    def stop(record):
        if record["training"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", [GRID.replace("inf", "0.03")], callbacks=[stop])
    seen = []
    run(tmp_path / "a", [GRID.replace("inf", "0.03")], callbacks=[seen.append])
    assert {record["training"] for record in seen} == {3, 4, 5, 6}
    run(tmp_path / "b", [GRID.replace("inf", "0.03")])
    (resumed, one), (whole, other) = one_record(tmp_path / "a"), one_record(tmp_path / "b")
    assert resumed["certificate"] == whole["certificate"]
    np.testing.assert_array_equal(one["top5_score"], other["top5_score"])


def test_a_training_that_is_done_is_not_done_again_for_want_of_its_score(
    tmp_path, use, monkeypatch, every_step
):
    use(toy())
    plain, scores, steps = train._Training._step, Work.scores, []
    monkeypatch.setattr(
        train._Training, "_step", lambda self, it: steps.append(self.done) or plain(self, it)
    )

    def stop(self, net, split, rows):
        raise KeyboardInterrupt

    wanted = [GRID.replace("inf,0.01,0.02", "0.01")]
    monkeypatch.setattr(Work, "scores", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, wanted)
        assert steps == [*range(4)]
    monkeypatch.setattr(Work, "scores", scores)

    def of_one_training_at_a_time(record):
        names = {path.name[:2] for path in tmp_path.rglob("*.pt")}
        assert names == {f"{record['training']:02d}"}

    assert run(tmp_path, wanted, callbacks=[of_one_training_at_a_time]).filled == 1
    assert steps == [*range(4)] * 3  # one candidate more, and the chosen one again


class Clock:
    """Stands still but for what is told to take time."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(train, "time", self)
        self.takes(monkeypatch, train._Training, "_step", 1)
        self.takes(monkeypatch, Work, "scores", 100)

    def monotonic(self):
        return self.now

    def takes(self, monkeypatch, owner, name, seconds):
        plain = getattr(owner, name)

        def slow(*arguments):
            self.now += seconds
            return plain(*arguments)

        monkeypatch.setattr(owner, name, slow)


def seconds_of(root):
    return one_record(root)[0]["seconds"]


def test_seconds_are_those_of_all_trainings_and_of_their_scoring(tmp_path, use, monkeypatch):
    use(toy(("train", "val", "test")))
    Clock(monkeypatch)
    run(tmp_path / "one", ["finetune-tiny+steps=3+batch_size=8"])
    assert seconds_of(tmp_path / "one") == 3 + 100 + 100  # test, and val for the temperature
    run(tmp_path / "grid", [GRID])
    # Two of six diverge, which is seen where an epoch ends, after three steps.
    assert seconds_of(tmp_path / "grid") == 2 * 3 + 4 * (4 + 100) + 4 + 100


def test_seconds_of_a_training_that_was_cut_off_count_from_its_checkpoint(
    tmp_path, use, monkeypatch, every_step
):
    use(toy())
    clock = Clock(monkeypatch)

    def stop(record):
        clock.now += 1000  # since the checkpoint; lost with what it was spent on
        raise KeyboardInterrupt

    wanted = ["finetune-tiny+epochs=2+batch_size=8"]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, wanted, callbacks=[stop])
    clock.now += 1000
    run(tmp_path, wanted)
    assert seconds_of(tmp_path) == 6 + 100


CHILD = """
import sys, torch, featstore
torch.set_num_threads(1)
from featstore.errors import UnknownNameError
from featstore.finetuning import train
train.CHECKPOINT_SECONDS = 0.0
featstore.finetune(["tiny-vit-random"], [sys.argv[1]], protocols=[sys.argv[3]],
                   results=sys.argv[2], device="cpu", num_workers=1)
"""


@pytest.mark.slow
def test_killed_and_resumed_it_ends_in_the_same_bits(tmp_path):
    protocol = "finetune-marks-bn+epochs=10+batch_size=6+fraction=0.8"
    photos = f"folder:{write_folder(tmp_path / 'photos')}"
    arguments = [sys.executable, "-c", CHILD, photos, str(tmp_path / "a"), protocol]
    with subprocess.Popen(arguments) as child:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            steps = [int(path.stem[3:]) for path in tmp_path.glob("a/.finetune/*/*.pt")]
            if max(steps, default=0) >= 12:
                break
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("a/*/*/*/*/*.json"))
    records_seen = []
    options = {"models": [VIT], "datasets": [photos], "callbacks": [records_seen.append]}
    assert run(tmp_path / "a", [protocol], **options).filled == 1
    assert 4 <= records_seen[0]["epoch"] <= 10  # it did not begin anew
    run(tmp_path / "b", [protocol], **options)
    (resumed, one), (whole, other) = one_record(tmp_path / "a"), one_record(tmp_path / "b")
    assert resumed["certificate"] == whole["certificate"]
    assert len(whole["certificate"]["loss"]) == 10
    assert resumed["metrics"] == whole["metrics"]
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def join(code, port, *arguments, found):
    """Two processes that share each batch, and what each must print."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
              "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    members = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for member in members:
            out, _ = member.communicate(timeout=120)
            assert (member.returncode, out.strip()) == (0, found)
    finally:  # where one has failed, the other waits for it
        for member in members:
            member.kill()
            member.wait()
            member.stdout.close()


MEMBER = """
import sys, torch, featstore
torch.set_num_threads(1)
from featstore.finetuning import train
train.CHECKPOINT_SECONDS = 0.0
done = featstore.finetune(["tiny-vit-random"], [sys.argv[1]], protocols=sys.argv[3:],
                          results=sys.argv[2], device="cpu", num_workers=0)
print(done.filled, done.up_to_date, len(done.failed))
"""


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path, free_port):
    ending = "+drop_path=0+epochs=4+batch_size=10"
    # The one that diverges is the first: the processes must go on together.
    protocols = [f"finetune-marks{ending}+lr=inf", f"finetune-marks{ending}"]
    photos = f"folder:{write_folder(tmp_path / 'photos')}"
    run(tmp_path / "one", protocols, [VIT], [photos])
    join(MEMBER, free_port, photos, str(tmp_path / "two"), *protocols, found="1 0 1")
    (alone, one), (shared_by_two, two) = one_record(tmp_path / "one"), one_record(tmp_path / "two")
    assert two["index"].tolist() == list(range(24))
    np.testing.assert_array_equal(one["label"], two["label"])
    np.testing.assert_allclose(one["top5_score"], two["top5_score"], atol=2e-4)
    loss = alone["certificate"]["loss"]
    assert shared_by_two["certificate"]["loss"] == pytest.approx(loss, abs=2e-5)
    assert shared_by_two["certificate"]["batch"]["processes"] == 2
    assert alone["features"] == shared_by_two["features"]


APART = """
import os, sys, torch, featstore
import torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
from featstore.finetuning import train
train.CHECKPOINT_SECONDS = 0.0
root = sys.argv[2] + os.environ["RANK"]
plain, steps = train._Training._step, []
def step(self, loaded):
    steps.append(self.done)
    if len(steps) == 6:
        raise KeyboardInterrupt
    plain(self, loaded)
train._Training._step = step
def run(root, **options):
    return featstore.finetune(["tiny-vit-random"], [sys.argv[1]], protocols=[sys.argv[3]],
                              results=root, device="cpu", num_workers=0, **options).filled
try:
    run(root)
except KeyboardInterrupt:
    dist.barrier()  # as long as one steps, the other must not leave
print(run(root), steps[6:], run(root + "-whole"), run(root, overwrite=True))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_with_folders_of_their_own_go_on_from_the_checkpoint_of_the_first(
    tmp_path, free_port
):
    protocol = "finetune-ericsson+steps=4+batch_size=10+lrs=0.01+decays=0.0"
    photos = f"folder:{write_folder(tmp_path / 'photos')}"
    # The first of three trainings is done when the second is cut off, after a step.
    steps = [1, 2, 3, *range(4)]
    arguments = (APART, free_port, photos, str(tmp_path / "r"), protocol)
    join(*arguments, found=f"1 {steps} 1 1")
    assert not list(tmp_path.glob("r1*/*/*/*/*/*.json"))
    assert not list(tmp_path.glob("r1*/.finetune"))
    resumed, one = one_record(tmp_path / "r0")
    whole, other = one_record(tmp_path / "r0-whole")
    assert resumed["certificate"] == whole["certificate"]
    np.testing.assert_array_equal(one["top5_score"], other["top5_score"])


STATISTICS = """
import sys, torch, featstore
torch.set_num_threads(1)
from featstore.finetuning.measure import Work
plain = Work.scores
def scores(self, net, split, rows):
    torch.save(net.state_dict(), f"{sys.argv[2]}-{self.machine.rank}.pt")
    return plain(self, net, split, rows)
Work.scores = scores
done = featstore.finetune(["tiny-resnet-random"], [sys.argv[1]], protocols=[sys.argv[3]],
                          results=sys.argv[2], device="cpu", num_workers=0)
print(done.filled, done.up_to_date, len(done.failed))
"""


@pytest.mark.slow
def test_all_processes_score_by_the_running_statistics_of_the_first(tmp_path, free_port):
    protocol = "linear-marks-literal+epochs=4+batch_size=10+lr=5+crop=centre"
    photos = f"folder:{write_folder(tmp_path / 'photos')}"
    join(STATISTICS, free_port, photos, str(tmp_path / "two"), protocol, found="1 0 0")
    _, kept = one_record(tmp_path / "two")
    net = work_of(protocol, dataset=featstore.load_dataset(photos)).net().eval()
    test = featstore.load_dataset(photos).split("test")
    images = torch.from_numpy(np.stack([np.asarray(test.read(i)) for i in range(24)]))
    scores, means = [], []
    for rank in range(2):  # each before it was told the other's
        net.load_state_dict(torch.load(tmp_path / f"two-{rank}.pt"))
        means.append(net.backbone.bn1.running_mean.clone())
        with torch.inference_mode():
            scores.append(net(images.permute(0, 3, 1, 2)).log_softmax(dim=1).numpy())
    assert not torch.allclose(*means, rtol=1e-3)
    assert np.abs(scores[0] - scores[1]).max() > 1e-3
    found = np.empty((24, 3))
    np.put_along_axis(found, kept["top5"][:, :3].astype(int), kept["top5_score"][:, :3], axis=1)
    np.testing.assert_allclose(found, scores[0], atol=1e-5)


@pytest.mark.parametrize(
    ("option", "fault"),
    [
        ({"precision": "fp8"}, "precision must be one of"),
        ({"accumulate": 0}, "accumulate at least 1"),
        ({"seeds": [-1]}, "seeds at least 0"),
        ({"device": "tpu"}, "device must be auto"),
    ],
)
def test_wrong_options_are_refused(option, fault, tmp_path, use):
    use(toy())
    with pytest.raises(ValueError, match=fault):
        run(tmp_path, **option)


@pytest.fixture
def command(call, tmp_path, monkeypatch, use):
    monkeypatch.chdir(tmp_path)
    use(toy())
    plain = ("finetune", "-m", RESNET, "-d", "toy", "--device", "cpu")
    return lambda *more: call(*plain, *more)


def test_the_command_fills_cells_and_says_so(command):
    short = ("-p", "finetune-tiny", "--epochs", "1", "--seed", "0", "--seed", "1")
    status, out, _ = command(*short)
    assert (status, out[:36]) == (0, "2 cells filled, 0 up to date, 0 fail")
    status, out, _ = command(*short, "--json")
    found = json.loads(out)
    assert (status, found["up_to_date"], found["results"]) == (0, 2, "data/results.zarr")
    status, out, err = command("-p", "finetune-tiny", "--fraction", "0.01")
    assert (status, err.count("\n")) == (1, 1)
    assert "the smallest is --fraction 0.125" in err
    status, _, err = command("-p", "finetune-large")
    assert (status, err.count("\n")) == (2, 1)


def test_the_command_compiles_if_told(command, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda net: seen.append(type(net)) or net)
    short = ("-p", "finetune-tiny", "--epochs", "1")
    assert (command(*short)[0], seen) == (0, [])
    assert (command(*short, "--overwrite", "--compile")[0], seen) == (0, [Net])


def test_ctrl_c_keeps_the_checkpoint_and_the_same_command_goes_on(
    command, monkeypatch, every_step, tmp_path
):
    wanted = ("-p", "finetune-tiny", "--steps", "9")
    plain, calls = train._Training._step, []

    def step(self, loaded):
        calls.append(self.done)
        if len(calls) == 6:
            raise KeyboardInterrupt
        plain(self, loaded)

    monkeypatch.setattr(train._Training, "_step", step)
    status, _, err = command(*wanted)
    assert status == 130
    assert "the same command goes on" in err
    status, out, _ = command(*wanted)
    assert (status, out[:14]) == (0, "1 cells filled")
    assert calls == [*range(6), *range(5, 9)]


def test_curves_go_to_tensorboard_where_it_is_installed(command, monkeypatch, tmp_path):
    written = []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, *point):
            written.append((self.folder, *point))

        def flush(self):
            pass

        close = flush

    name = "torch.utils.tensorboard"
    monkeypatch.setitem(sys.modules, name, None)
    wanted = ("-p", SHORT, "--tensorboard", "curves")
    status, _, err = command(*wanted)
    assert (status, err) == (
        2, "featstore: --tensorboard needs it installed: pip install tensorboard\n"
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, name, type("module", (), {"SummaryWriter": Writer}))
    assert command(*wanted)[0] == 0
    assert [point[1:2] + point[3:] for point in written] == [
        (curve, step) for step in (3, 6) for curve in ("loss", "accuracy", "lr")
    ]
    assert written[0][0] == f"curves/{RESNET} toy eval {SHORT} seed 0 0"
    assert all(math.isfinite(point[2]) for point in written)


def test_protocols_lists_fine_tunings(call):
    status, out, _ = call("protocols")
    assert status == 0
    assert "finetune-marks " in out
    assert "linear-marks-literal-bn" in out
    status, out, _ = call("protocols", "finetune-marks+epochs=5", "--json")
    assert (status, json.loads(out)["epochs"]) == (0, 5)
    known = json.loads(call("protocols", "--json")[1])
    assert {n for n, one in known.items() if one["command"] == "finetune"} == set(
        finetuning.PROTOCOLS
    )
    assert [n for n, one in known.items() if one["transductive"]] == [
        "knn-marks-zscore-own", "kmeans",
    ]  # fmt: skip
