"""Training on images: counted batches, states that continue bit for bit, several networks side by side, and reading."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.engines import SupervisedTrainer
from PIL import Image
from torch import nn

from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines import image_training
from monai_wscxr.experiments.baselines.common import Cost
from monai_wscxr.experiments.baselines.image_training import (
    ImageBatches,
    ImageTraining,
    batch_loader,
    counted_seed,
    train_side_by_side,
)
from monai_wscxr.experiments.baselines.images import GreyImages, ImageReader


def grey(n, size=8, seed=0):
    pixels = torch.randint(256, (n, 1, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return GreyImages([f"{i}.png" for i in range(n)], pixels)


def noisy(image, generator):
    return {"image": image + torch.rand(image.shape, generator=generator)}


def training(file=None, epochs=4, seed=0, images=None):
    """A small network with batch normalisation and dropout, trained to reproduce images."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 1))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    batches = ImageBatches(images or grey(10), 4, seed, noisy)
    trainer = SupervisedTrainer(
        "cpu",
        epochs,
        batch_loader(batches),
        network,
        optimizer,
        nn.MSELoss(),
        prepare_batch=lambda batch, *_, **__: (batch["image"], batch["image"]),
        decollate=False,
    )
    parts = {"network": network, "optimizer": optimizer}
    made = ImageTraining(trainer, batches, parts, seed, {"rate": 1e-2}, file)
    return SimpleNamespace(network=network, run=made.run, losses=made.losses)


def weights(made):
    return [tensor.clone() for tensor in made.network.state_dict().values()]


def stop_at(step):
    counted = []

    def on_step():
        counted.append(1)
        if len(counted) == step:
            raise KeyboardInterrupt

    return on_step


def test_a_killed_training_ends_at_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(image_training, "SAVE_SECONDS", 0.0)
    whole = training(tmp_path / "whole.pt")
    cost = whole.run()
    assert (cost.epochs, cost.steps, cost.images) == (4, 12, 40)
    assert cost.processor_seconds > 0
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path / "cut.pt").run(stop_at(8))  # within the third epoch
    counted = []
    after = training(tmp_path / "cut.pt")
    cost = after.run(lambda: counted.append(1))
    assert (cost.epochs, cost.steps, cost.images, len(counted)) == (4, 12, 40, 12)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(after), strict=True))
    assert whole.losses == after.losses
    assert len(whole.losses) == 4
    assert whole.losses[-1] < whole.losses[0]
    other = training(seed=1)
    other.run()
    assert not torch.equal(weights(whole)[0], weights(other)[0])


def test_a_training_can_be_prolonged(tmp_path):
    training(tmp_path / "state.pt", epochs=2).run()
    longer, whole = training(tmp_path / "state.pt"), training()
    longer.run()
    whole.run()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(longer), strict=True))


@pytest.mark.parametrize("kind", ["images", "seed", "longer", "damaged"])
def test_a_state_of_another_training_is_not_continued(tmp_path, caplog, kind):
    file = tmp_path / "state.pt"
    training(file, epochs=3 if kind == "longer" else 2).run()
    if kind == "damaged":
        file.write_bytes(file.read_bytes()[:-50])
    made = training(file, 2, 1 if kind == "seed" else 0, grey(10, seed=1) if kind == "images" else None)
    assert made.run().steps == 6  # none of those of the state
    assert "starts again" in caplog.text


def test_a_state_is_saved_at_most_every_half_minute_but_at_the_end(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(image_training, "save_sealed", lambda file, state: saved.append(state["epoch"]))
    training(tmp_path / "state.pt").run()
    assert saved == [4]


def test_batches_depend_on_seed_pass_and_index_alone():
    def epoch(number, seed=0, batches=None):
        made = ImageBatches(grey(10), 4, seed, noisy, batches=batches)
        made.epoch = number
        return list(made)

    def by_index(batches):
        return {int(i): image for batch in batches for i, image in zip(batch["index"], batch["image"], strict=True)}

    first, again, second, other = epoch(0), epoch(0), epoch(1), epoch(0, seed=1)
    assert [len(batch["index"]) for batch in first] == [4, 4, 2]
    assert sorted(by_index(first)) == list(range(10))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, again, strict=True))
    assert first[0]["index"].tolist() != second[0]["index"].tolist()
    for changed in (by_index(second), by_index(other)):
        assert not torch.equal(by_index(first)[3], changed[3])
    # epochs of two batches run through the same passes
    short = [*epoch(0, batches=2), *epoch(1, batches=2), *epoch(2, batches=2)]
    assert [b["index"].tolist() for b in short] == [b["index"].tolist() for b in [*first, *second]]


@pytest.mark.parametrize(
    ("n", "size", "drop_last", "sizes"),
    [(9, 4, False, [4, 4]), (10, 4, True, [4, 4]), (3, 4, True, [3]), (4, 4, False, [4])],
)
def test_sizes_of_batches(n, size, drop_last, sizes):
    batches = ImageBatches(grey(n), size, drop_last=drop_last)
    assert [len(batch["image"]) for batch in batches] == sizes
    assert len(batches) == len(sizes)


def test_numbers_out_of_range():
    for n, size, batches in ((1, 4, None), (9, 1, None), (9, 4, 0)):
        with pytest.raises(InputError):
            ImageBatches(grey(n), size, batches=batches)
    assert counted_seed(1, 2) != counted_seed(2, 1)


def train_task(seed, on_step):
    made = training(epochs=1, seed=seed)
    cost = made.run(on_step)
    return weights(made)[0].tolist(), cost.steps, torch.get_num_threads()


def test_networks_side_by_side_are_those_of_one_process(capsys):
    before = torch.get_num_threads()
    one = train_side_by_side(train_task, [0, 1], 1, 6, "networks", True)
    assert torch.get_num_threads() == before
    two = train_side_by_side(train_task, [0, 1], 2, 6, "networks", True)
    assert one == two
    assert [found[1:] for found in two] == [(3, 1), (3, 1)]
    assert capsys.readouterr().err.count("networks: 6 of 6 steps") == 2


def fail(task, on_step):
    raise InputError(f"no {task}")


def test_an_error_in_a_process_is_raised():
    with pytest.raises(InputError, match="no 0"):
        train_side_by_side(fail, [0, 1], 2, 6, "networks", False)


def test_reading(tmp_path):
    random = np.random.default_rng(0)
    items = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.fromarray(random.integers(0, 255, (64, 80), dtype=np.uint8)).save(path)
        items.append({"image": str(path), "label": 0})
    (tmp_path / "bad.png").write_bytes(b"no image")
    items.insert(1, {"image": str(tmp_path / "bad.png"), "label": 0})
    reader = ImageReader(32, max_bad_share=0.25, progress=False)
    images = reader.read(items)
    assert [path[-5:] for path in images.files] == ["0.png", "1.png", "2.png"]
    assert images.pixels.shape == (3, 1, 32, 32)
    assert 0.3 < images.floats().mean() < 0.7
    assert [file for file, _, _ in reader.rejected] == [items[1]["image"]]
    assert images.of({items[3]["image"], items[0]["image"]}).files == [items[0]["image"], items[3]["image"]]
    assert images.of({items[0]["image"]}).digest != images.of({items[2]["image"]}).digest
    with pytest.raises(InputError, match=r"1 of 4 images cannot be used.*bad\.png"):
        ImageReader(32, max_bad_share=0.2, progress=False).read(items)
    with pytest.raises(InputError, match="no usable"):
        ImageReader(32, max_bad_share=1.0, progress=False).read(items[1:2])


def test_costs_add_up():
    cost = Cost(5, 10, 100, 1.0)
    cost.add(Cost(4, 10, 80, 2.0))
    assert vars(cost) == {"epochs": 5, "steps": 20, "images": 180, "processor_seconds": 3.0}
