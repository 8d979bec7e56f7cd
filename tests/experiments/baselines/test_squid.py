"""SQUID against its description: sizes, memories, losses, the score of each image alone, and what a training leaves."""

import numpy as np
import pytest
import torch
from torch import nn

from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines import image_training
from monai_wscxr.experiments.baselines.images import GreyImages, Place
from monai_wscxr.experiments.baselines.squid import (
    Critic,
    Generator,
    Inpainting,
    SpaceMemory,
    Squid,
    critic_loss,
    generator_loss,
    neighbours,
    recall,
    shifted_and_scaled,
    to_patches,
    to_whole,
)

SMALL = (4, 8, 16, 32, 64)


@pytest.fixture(autouse=True)
def _seeded_and_single_threaded():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def size_of(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def images(n, size=64):
    """Smooth grey images."""
    coarse = torch.rand(n, 1, 4, 4)
    pixels = nn.functional.interpolate(coarse, (size, size), mode="bilinear").mul(255).to(torch.uint8)
    return GreyImages([f"{i}.png" for i in range(n)], pixels)


def test_it_has_the_published_size():
    with torch.device("meta"):
        generator, critic = Generator(), Critic()
        found = generator(torch.rand(2, 1, 128, 128), teach=True)
    assert round(size_of(generator) - size_of(generator.teacher), 1) == 40.6
    assert round(size_of(generator.teacher), 1) == 3.9
    assert round(size_of(critic), 2) == 0.68
    assert found.image.shape == found.teacher.shape == (2, 1, 128, 128)
    shapes = [(8, 256, 8, 8), (8, 128, 16, 16), (2, 64, 64, 64), (2, 32, 128, 128)]
    assert [tuple(level.shape) for level in found.levels] == shapes
    assert [tuple(level.shape) for level in found.teacher_levels] == shapes
    assert found.queries.shape == (2, 4, 2048)
    assert generator.inpainting.queues.shape == (4, 200, 2048)
    assert [tuple(m.matrices.shape) for m in generator.decoder.memories] == [(4, 200, 4096), (4, 200, 8192)]


def test_patches_are_row_by_row():
    whole = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = to_patches(whole)
    assert torch.equal(patches[1], whole[0, :, :2, 3:])
    assert torch.equal(patches[6], whole[1, :, 2:, :3])
    assert torch.equal(to_whole(patches), whole)


def test_neighbours_are_the_other_cells():
    vectors = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    found = neighbours(vectors)[0, :, :, 0]
    assert found.tolist() == [
        [0, 0, 0, 0, 2, 0, 3, 4],
        [0, 0, 0, 1, 0, 3, 4, 0],
        [0, 1, 2, 0, 4, 0, 0, 0],
        [1, 2, 0, 3, 0, 0, 0, 0],
    ]


def test_recall_keeps_four_of_the_slots():
    query, memory = torch.rand(3, 6), torch.rand(20, 6)
    for q, result in zip(query.double().numpy(), recall(query, memory), strict=True):
        weights = np.exp(memory.double().numpy() @ q)
        weights /= weights.sum()
        best = np.argsort(weights)[::-1][:4]
        expected = sum(weights[j] / weights[best].sum() * memory[j].double().numpy() for j in best)
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5)


def test_the_gradient_of_recall_is_that_of_the_softmax():
    query, memory = torch.rand(2, 4, dtype=torch.float32, requires_grad=True), torch.rand(9, 4)
    recall(query, memory).square().sum().backward()
    value = recall(query, memory).detach()
    soft = torch.softmax(query @ memory.T, -1)
    [expected] = torch.autograd.grad((soft @ memory * 2 * value).sum(), query)
    torch.testing.assert_close(query.grad, expected)


def test_recall_of_equal_slots_is_finite():
    assert torch.equal(recall(torch.zeros(1, 3), torch.rand(8, 3)), torch.zeros(1, 3))


def test_the_space_memory_has_one_matrix_per_quadrant():
    memory = SpaceMemory(2 * 2 * 2, slots=6).eval()
    maps = torch.rand(4, 2, 4, 4)
    found = memory(maps)
    for quadrant, (y, x) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        part = maps[:, :, y : y + 2, x : x + 2].reshape(4, -1)
        expected = recall(part, memory.matrices[quadrant]).reshape(4, 2, 2, 2)
        torch.testing.assert_close(found[:, :, y : y + 2, x : x + 2], expected)
    mixed = memory.train()(maps.repeat(50, 1, 1, 1))
    original = (mixed == maps.repeat(50, 1, 1, 1)).all(dim=1)
    assert 0.02 < original.float().mean() < 0.09  # 5 % of the cells, all channels of a cell together
    assert torch.equal(original, (mixed == maps.repeat(50, 1, 1, 1)).any(dim=1))


def test_the_queues_are_first_in_first_out():
    block = Inpainting(32, 2, slots=7)
    first, second = torch.rand(5, 4, 32), torch.rand(5, 4, 32)
    before = block.queues.clone()
    block.remember(first)
    assert torch.equal(block.queues[:, :5], first.transpose(0, 1))
    assert torch.equal(block.queues[:, 5:], before[:, 5:])
    block.remember(second)
    assert torch.equal(block.queues[2, 5:], second[:2, 2])
    assert torch.equal(block.queues[2, :3], second[2:, 2])
    assert torch.equal(block.queues[2, 3:5], first[3:, 2])
    copy = Inpainting(32, 2, slots=7)
    copy.load_state_dict(block.state_dict())
    assert int(copy.pointer) == 3
    block.eval()(torch.rand(8, 32, 2, 2))
    assert torch.equal(block.queues, copy.queues)  # looking changes nothing


def test_a_patch_is_painted_from_its_neighbours_and_its_place():
    block = Inpainting(32, 2, slots=7).eval()
    code = torch.rand(8, 32, 2, 2)
    painted, queries = block(code)
    assert painted.shape == code.shape
    assert queries.shape == (2, 4, 32)
    changed = code.clone()
    changed[1] = torch.rand(32, 2, 2) * 3  # the second patch of the first image
    other, _ = block(changed)
    assert (other - painted).flatten(1).abs().amax(1)[:4].gt(1e-5).all()
    assert torch.equal(other[4:], painted[4:])
    bits = block._position(4, code[:4])
    assert bits[:, :, 0, 0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]


def test_losses_against_naive_ones():
    generator = Generator(64, SMALL)
    image = torch.rand(3, 1, 64, 64)
    found = generator(image, teach=True)
    logits, real = torch.randn(3), torch.randn(3)

    def numbers(tensor):
        return tensor.detach().double().numpy()

    def mse(a, b):
        return np.mean((numbers(a) - numbers(b)) ** 2)

    def bce(x, label):
        p = 1 / (1 + np.exp(-numbers(x)))
        return -np.mean(np.log(p if label else 1 - p))

    expected = 10 * mse(found.image, image) + 0.005 * bce(logits, 1) + 0.01 * mse(found.teacher, image)
    expected += 0.001 * sum(mse(a, b) for a, b in zip(found.levels, found.teacher_levels, strict=True))
    assert generator_loss(image, found, logits).item() == pytest.approx(expected, rel=1e-5)
    assert critic_loss(real, logits).item() == pytest.approx(0.005 * (bce(real, 1) + bce(logits, 0)), rel=1e-5)


def test_the_teacher_teaches_decoders_only():
    generator = Generator(64, SMALL)
    found = generator(torch.rand(2, 1, 64, 64), teach=True)
    found.teacher.sum().backward()
    assert all(parameter.grad is None for parameter in generator.encoder.parameters())
    assert generator.teacher.last.weight.grad is not None
    found = generator(torch.rand(2, 1, 64, 64), teach=True)
    sum((a - b).square().sum() for a, b in zip(found.levels, found.teacher_levels, strict=True)).backward()
    assert generator.encoder[0].first[0].weight.grad is not None  # no stop-gradient on the side of the student
    assert generator.teacher.blocks[0].first[0].weight.grad.abs().sum() > 0


def test_the_score_of_an_image_is_that_of_a_batch_of_one():
    method = Squid(epochs=1, width=0.125, batch_size=4)
    normal = images(8)
    method.fit_images(normal)
    [scores] = method.image_scores(normal)
    assert scores.shape == (8,)
    with torch.no_grad():
        for number in range(8):
            alone = GreyImages(["one"], normal.pixels[number : number + 1])
            torch.testing.assert_close(method.image_scores(alone)[0][0], scores[number], rtol=1e-4, atol=1e-5)
            found = method.generator(alone.floats()).image
            torch.testing.assert_close(-method.critic(found)[0], scores[number], rtol=1e-4, atol=1e-5)
    mixed = torch.rand(8, 1, 64, 64) * torch.linspace(0.1, 1, 8)[:, None, None, None]
    assert (
        method.critic(mixed) - method.critic.of_each(mixed)
    ).abs().max() > 1e-3  # the statistics of a batch are others
    assert method.image_maps(normal).shape == (8, 64, 64)
    assert method.learned.cost.steps == 2
    assert method.learned.cost.images == 8


def test_it_learns_one_batch_by_heart():
    generator, image = Generator(64, SMALL), images(4).floats()
    optimizer = torch.optim.Adam(generator.parameters(), 3e-3)
    errors = []
    for _ in range(60):
        found = generator(image, teach=True)
        errors.append(nn.functional.mse_loss(found.image, image).item())
        optimizer.zero_grad()
        generator_loss(image, found, torch.zeros(4)).backward()
        optimizer.step()
        generator.inpainting.remember(found.queries)
    assert errors[-1] < 0.2 * errors[0], errors


def test_every_second_batch_trains_the_generator():
    method = Squid(epochs=2, width=0.125, batch_size=2)
    training = method.training(images(6), Place())
    seen = []

    def on_step():
        seen.append(("loss" in training.trainer.state.output, int(method.generator.inpainting.pointer)))

    training.run(on_step)
    # three batches per epoch: the first and the third train it, and fill the queues with two vectors each
    assert seen == [(True, 2), (False, 2), (True, 4), (True, 6), (False, 6), (True, 8)]
    assert method.generator.training


def test_a_killed_training_ends_at_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(image_training, "SAVE_SECONDS", 0.0)
    normal, steps = images(5), []

    def stop():
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt

    def made(folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        return Squid(epochs=3, width=0.125, batch_size=2), Place(tmp_path / folder)

    method, place = made("cut")
    with pytest.raises(KeyboardInterrupt):
        method.training(normal, place).run(stop)
    after, _ = made("cut")
    after.fit_images(normal, None, place)
    whole, elsewhere = made("whole")
    whole.fit_images(normal, None, elsewhere)
    for a, b in ((after.generator, whole.generator), (after.critic, whole.critic)):
        assert all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())
    assert torch.equal(after.image_scores(normal)[0], whole.image_scores(normal)[0])


def test_augmentation_stays_within_its_range():
    image = torch.zeros(1, 100, 100)
    image[:, 30:70, 30:70] = 1
    sizes, places = [], []
    for number in range(200):
        moved = shifted_and_scaled(image, torch.Generator().manual_seed(number))["image"]
        rows = moved[0].sum(1).nonzero()[:, 0]
        sizes.append(len(rows))
        places.append(float(rows.float().mean()))
        assert set(moved.unique().tolist()) == {0.0, 1.0}
    assert 37 <= min(sizes) < 40 < max(sizes) <= 43
    assert 44 <= min(places) < 46 < 53 < max(places) <= 55


@pytest.mark.parametrize("options", [{"epochs": 0}, {"width": 2.0}, {"batch_size": 1}, {"precision": "float16"}])
def test_options_out_of_range(options):
    with pytest.raises(InputError, match=r"SQUID|training_precision"):
        Squid(**options)
    with pytest.raises(InputError, match="multiple of 32"):
        Generator(100, SMALL)
