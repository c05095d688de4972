"""Which images are shown, in what order and how: independent of who loads them."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from featstore.errors import NotApplicableError
from featstore.finetuning import get
from featstore.finetuning.data import Plan, Samples, drawn_rows, load, rows_digest

from .conftest import toy_split, work_of


def labelled(labels):
    """A split of so many images; nothing is read."""
    split = toy_split("train", per_class=len(labels), classes=int(max(labels)) + 1)
    return replace(
        split, labels=np.asarray(labels, np.int64), sample_ids=tuple(map(str, range(len(labels))))
    )


def test_a_subset_is_the_published_draw_from_true_labels():
    labels = np.random.default_rng(3).permutation(np.arange(600) % 4)
    rows = drawn_rows(labelled(labels), get("finetune10-marks-byol2"), 0)
    rng = np.random.RandomState(42)  # as the authors' code reads, given the labels in order
    drawn = [rng.choice(np.where(labels == kind)[0], 15, replace=False) for kind in range(4)]
    assert sorted(np.hstack(drawn)) == rows.tolist()
    assert np.bincount(labels[rows]).tolist() == [15] * 4
    other = drawn_rows(labelled(labels), get("finetune10-marks-byol2"), 1)
    assert other.tolist() != rows.tolist()
    assert rows_digest(rows) == hashlib.sha256(np.array(rows, "<i8").tobytes()).hexdigest()


@pytest.mark.parametrize(("fraction", "each"), [(0.1, 2), (0.149, 2), (0.15, 3), (0.99, 19)])
def test_a_subset_rounds_down(fraction, each):
    rows = drawn_rows(labelled(np.arange(60) % 3), get(f"finetune-marks+fraction={fraction}"), 0)
    assert len(rows) == 3 * each


def test_a_category_of_fewer_images_gives_all():
    labels = [0] * 97 + [1] * 3
    rows = drawn_rows(labelled(labels), get("finetune10-marks-byol2"), 0)
    assert np.bincount(np.array(labels)[rows]).tolist() == [5, 3]
    assert len(set(rows.tolist())) == 8


def test_none_of_each_is_refused_with_the_smallest_fraction_that_works():
    split = labelled(np.arange(60) % 7)
    with pytest.raises(NotApplicableError, match=r"is none .* --fraction 0\.116667$"):
        drawn_rows(split, get("finetune1-marks-byol2"), 0)
    assert len(drawn_rows(split, get("finetune1-marks-byol2+fraction=0.116667"), 0)) == 7


def test_shots_are_of_each_category():
    assert len(drawn_rows(labelled(np.arange(60) % 3), get("finetune-marks+shots=4"), 0)) == 12


@pytest.mark.parametrize("rows", [40, 41, 45])
def test_processes_and_parts_share_each_batch_and_leave_no_row_out(rows):
    whole = Plan(rows, 20, seed=5)
    assert whole.per_epoch == {40: 2, 41: 2, 45: 3}[rows]  # a single row joins another batch
    for step in range(2 * whole.per_epoch):
        shared = []
        for rank in range(3):
            plan = Plan(rows, 20, seed=5, accumulate=4, rank=rank, world=3)
            parts = plan.parts(step)
            assert min(map(len, parts), default=2) >= 2
            shared += [row for part in parts for _, row in part]
        assert sorted(shared) == sorted(whole.batch(step).tolist())
    epochs = [
        np.concatenate([whole.batch(e * whole.per_epoch + i) for i in range(whole.per_epoch)])
        for e in range(2)
    ]
    assert all(sorted(epoch.tolist()) == list(range(rows)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


def pixels_of(samples, plan, steps, num_workers):
    loaded = load(samples, plan, steps, num_workers=num_workers, pin=False)
    return {
        place: image
        for step in steps
        for part in plan.parts(step)
        for place, image in zip(part, next(loaded)[0], strict=True)
    }


def test_augmentation_depends_on_seed_epoch_and_position_alone():
    work = work_of("finetune-marks")
    samples = work.samples([("train", np.arange(24))], "random")
    plan = Plan(24, 10, seed=0)
    one = pixels_of(samples, plan, range(6), num_workers=0)
    two = pixels_of(samples, Plan(24, 7, seed=0, accumulate=3), range(8), num_workers=2)
    assert sorted(one) == sorted(two) == [(e, i) for e in range(2) for i in range(24)]
    assert all(torch.equal(one[place], two[place]) for place in one)
    assert not any(torch.equal(one[0, i], one[1, i]) for i in range(24))  # fresh in each epoch
    few = work.samples([("train", np.array([3, 9]))], "random")  # by place in the split
    assert torch.equal(few[1, 1][0], one[1, 9])
    other = Samples(samples.splits, samples.rows, samples.transform, seed=1)
    assert not torch.equal(other[0, 0][0], one[0, 0])


def test_splits_are_laid_end_to_end():
    work = work_of("finetune-tiny")
    samples = work.samples([("train", np.array([1, 5])), ("test", np.arange(24))], "centre")
    assert len(samples) == 26
    train, test = work.splits["train"], work.splits["test"]
    for row, split, position in ((0, train, 1), (1, train, 5), (2, test, 0), (25, test, 23)):
        image, label = samples[0, row]
        np.testing.assert_array_equal(image.permute(1, 2, 0), split.read.pixels[position])
        assert label == split.labels[position]
