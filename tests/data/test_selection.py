"""The few-shot choice, held-out patients and the overlap check."""

import random
import warnings
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from monai_wscxr.data.datalist import DatalistError, patient_of
from monai_wscxr.data.selection import _closest_subset, check_overlap, choose_few_shot, hold_out


def put(root, *names, content=None):
    """Write files with different content, or all with `content`, and return their folder."""
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() if content is None else content)
    return Path(root)


def item(image, label=0, name=None, patient=None):
    return {
        "image": str(image),
        "label": label,
        "class": name or ("normal", "abnormal")[label],
        "patient": patient or str(image),
    }


# ---- few shot


def pool():
    items = [item(f"v/{n:02}.png", 1, "virus") for n in range(12)]
    items += [item(f"b/{n:02}.png", 1, "bacteria") for n in range(9)]
    return items + [item(f"n/{n}.png") for n in range(5)]


def test_few_shot_takes_k_per_class_nested_and_whatever_the_order():
    items = pool()
    state, legacy = random.getstate(), np.random.get_state()[1].tolist()
    draws = [choose_few_shot(items, k, seed=3) for k in range(1, 10)]
    assert random.getstate() == state
    assert np.random.get_state()[1].tolist() == legacy
    for k, draw in enumerate(draws, start=1):
        assert [i["class"] for i in draw] == ["bacteria"] * k + ["virus"] * k
    for small, large in pairwise(draws):
        assert all(i in large for i in small)
    random.Random(0).shuffle(items)
    assert choose_few_shot(items, 4, seed=3) == draws[3]
    assert choose_few_shot([i for i in items if i["class"] == "virus"], 4, seed=3) == draws[3][4:]
    moved = [{**i, "image": f"/elsewhere/{i['image']}"} for i in items]
    assert [i["patient"] for i in choose_few_shot(moved, 4, seed=3)] == [i["patient"] for i in draws[3]]


def test_few_shot_is_pinned_and_depends_on_the_seed():
    assert [i["image"] for i in choose_few_shot(pool(), 2, seed=0)] == ["b/03.png", "b/05.png", "v/00.png", "v/02.png"]
    assert len({tuple(i["image"] for i in choose_few_shot(pool(), 2, seed=s)) for s in range(20)}) > 15


def test_few_shot_of_a_small_class(recwarn):
    with pytest.warns(UserWarning, match=r"class 'bacteria' has 9 abnormal image\(s\), fewer than k = 12"):
        draw = choose_few_shot(pool(), 12, seed=0)
    assert len(draw) == 9 + 12
    with pytest.raises(DatalistError, match="class 'bacteria' has 9"):
        choose_few_shot(pool(), 12, seed=0, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_few_shot(pool(), 9, seed=0)


def test_no_abnormal_image_is_chosen_for_k_of_0():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_few_shot(pool(), 0, seed=0, strict=True) == []
    with pytest.raises(DatalistError, match="k is -1; it must be 1 or more, or 0 to train on normal images alone"):
        choose_few_shot(pool(), -1, seed=0)


def test_few_shot_without_abnormal_images():
    with pytest.warns(UserWarning, match="no abnormal image to choose from: training on normal images alone"):
        assert choose_few_shot([item("a.png")], 1, seed=0) == []
    with pytest.raises(DatalistError, match=r"no abnormal image to choose from\. Put some into"):
        choose_few_shot([item("a.png")], 1, seed=0, strict=True)


# ---- held-out normals


def normals(sizes):
    return [item(f"{p:03}_{n}.png", patient=f"p{p}") for p, size in enumerate(sizes) for n in range(size)]


def test_hold_out_keeps_patients_together():
    items = [*normals([1, 2, 3, 4, 1, 1, 5, 3]), item("x.png", 1)]
    rest, held = hold_out(items, 0.25, seed=1)
    assert len(held) == 5
    assert len(rest) == 15
    assert not {i["patient"] for i in rest} & {i["patient"] for i in held}
    assert all(i["label"] == 0 for i in rest + held)
    shuffled = items[::-1]
    assert hold_out(shuffled, 0.25, seed=1) == (rest, held)
    assert len({tuple(i["image"] for i in hold_out(items, 0.25, seed=s)[1]) for s in range(20)}) > 5


def test_hold_out_is_as_close_as_patients_allow():
    rng = random.Random(0)
    for _ in range(200):
        sizes = [rng.randint(2, 9) for _ in range(rng.randint(2, 7))]
        target = rng.random() * sum(sizes)
        sums = {sum(c) for r in range(1, len(sizes)) for c in combinations(sizes, r)}
        best = min(sums, key=lambda s: (abs(s - target), s))
        assert sum(sizes[i] for i in _closest_subset(sizes, target)) == best


def test_hold_out_of_many_patients_without_single_images():
    sizes = [2] * 5000 + [3] * 2
    chosen = _closest_subset(sizes, 4001)
    assert len(set(chosen)) == len(chosen)
    assert sum(sizes[i] for i in chosen) == 4001


@pytest.mark.parametrize(("fraction", "count"), [(0.001, 1), (0.999, 9)])
def test_hold_out_leaves_both_sides_a_patient(fraction, count):
    assert len(hold_out(normals([1] * 10), fraction, seed=0)[1]) == count


def test_hold_out_errors():
    for fraction in (0, 1, -0.5, float("nan")):
        with pytest.raises(DatalistError, match="fraction is"):
            hold_out(normals([1, 1]), fraction, seed=0)
    with pytest.raises(DatalistError, match=r"at least two patients.*there are 1"):
        hold_out(normals([4]), 0.5, seed=0)


# ---- overlap


def test_overlap_of_copies_and_patients(tmp_path):
    put(tmp_path, "a.png", "b.png", "c.png", "d.png")
    put(tmp_path, "copy1.png", "copy2.png", content=b"a.png")
    training = [item(tmp_path / "a.png"), item(tmp_path / "b.png", patient="P")]
    clean = [item(tmp_path / "c.png"), item(tmp_path / "d.png", 1)]
    digests = {}
    assert check_overlap(training, clean, digests=digests) == []
    assert sorted(digests) == sorted(i["image"] for i in training + clean)

    test = [item(tmp_path / "copy1.png"), item(tmp_path / "copy2.png"), item(tmp_path / "d.png", 1, patient="P")]
    with pytest.raises(DatalistError, match="--allow_overlap true") as caught:
        check_overlap(training, test)
    findings = check_overlap(training, test, allow=True)
    assert findings == [
        f"2 test image(s) are exact copies of training images: {tmp_path}/a.png and {tmp_path}/copy1.png; "
        f"{tmp_path}/a.png and {tmp_path}/copy2.png.",
        f"1 patient(s) have images in training and in test: {tmp_path}/b.png and {tmp_path}/d.png.",
    ]
    assert all(finding in str(caught.value) for finding in findings)


def test_overlap_of_zhanglab_patients_is_per_class(tmp_path):
    names = ["person63_bacteria_306.jpeg", "person63_bacteria_307.jpeg", "person63_virus_118.jpeg"]
    put(tmp_path, *names)
    first, second, virus = (item(tmp_path / name, 1, patient=patient_of(name)) for name in names)
    assert check_overlap([first], [virus]) == []
    assert "1 patient(s) have images in training and in test" in check_overlap([first], [second], allow=True)[0]


def test_given_digests_are_used(tmp_path):
    put(tmp_path, "a.png", "b.png")
    training, test = [item(tmp_path / "a.png")], [item(tmp_path / "b.png")]
    digests = {str(tmp_path / "a.png"): "0", str(tmp_path / "b.png"): "0"}
    assert len(check_overlap(training, test, allow=True, digests=digests)) == 1


def test_contradictory_labels_are_always_an_error(tmp_path):
    put(tmp_path, "a.png", "b.png", "c.png", content=b"same")
    training = [item(tmp_path / "a.png", 0), item(tmp_path / "b.png", 0), item(tmp_path / "c.png", 1)]
    assert check_overlap(training[:2], []) == []
    with pytest.raises(
        DatalistError, match=r"1 image\(s\) are exact copies, with equal pixels, .*contradictory labels"
    ):
        check_overlap(training, [], allow=True)


def test_overlap_of_a_file_that_vanished(tmp_path):
    with pytest.raises(DatalistError, match=r"gone\.png: cannot be read"):
        check_overlap([item(tmp_path / "gone.png")], [])
