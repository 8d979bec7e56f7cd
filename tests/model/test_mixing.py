"""Mixing (Eq. 6) in training: rows and order of an epoch, ranks, remainders, resuming, mixtures."""

import copy
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from torch import nn
from torch.utils.data import DataLoader

from monai_wscxr.bank.file import BankFile, save_rows
from monai_wscxr.errors import InputError
from monai_wscxr.model import mixing
from monai_wscxr.model.losses import HingeLoss
from monai_wscxr.model.mixing import MixingInferer, PatchBatches, prepare_patch_batch
from monai_wscxr.model.networks import Discriminator
from monai_wscxr.ops import mixup

CONFIG = Path(__file__).parents[2] / "bundles" / "wscxr_chest_xray" / "configs" / "train.yaml"

ROWS = torch.arange(50.0)[:, None] * torch.tensor([1.0, -1.0, 0.5])  # row i is recognised by its first value
MINED = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))


class Catch(nn.Module):
    """Stands in for the discriminator and keeps the rows of its last call."""

    def forward(self, rows):
        self.rows = rows
        return rows.sum(dim=1)


def batches(batch_size=10, seed=0, rank=0, world_size=1, rows=ROWS, epoch=0):
    data = PatchBatches(batch_size, seed, rank, world_size)
    data.fill(rows)
    data.epoch = epoch
    return data


def ids(epoch):
    """Return the row numbers of one pass, batch by batch."""
    return [batch["normal"][:, 0].int().tolist() for batch in epoch]


def mixtures(inferer, epoch):
    """Return the mixed rows of one pass, batch by batch."""
    catch = Catch()
    found = []
    for batch in epoch:
        normal, _, _, options = prepare_patch_batch(batch)
        inferer(normal, catch, **options)
        assert torch.equal(catch.rows[: len(normal)], normal)
        found.append(catch.rows[len(normal) :].clone())
    return found


def filled(seed=0, alpha_min=0.1, alpha_max=1.0, mined=MINED):
    inferer = MixingInferer(seed, alpha_min, alpha_max)
    inferer.fill(mined)
    return inferer


# --- what an epoch covers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [2, 10, 12, 50, 512])
def test_an_epoch_covers_every_row_once_in_another_order_each_time(batch_size):
    data = batches(batch_size)
    first, second = ids(data), ids(data)
    for epoch in (first, second):
        assert sorted(row for batch in epoch for row in batch) == list(range(50))
        assert len(epoch) == data.batches_per_epoch
        assert all(len(batch) == batch_size for batch in epoch[:-1])
    assert first != second
    assert [row for batch in first for row in batch] != list(range(50))


def test_order_depends_on_seed_and_epoch_alone():
    once = batches()
    epochs = [ids(once) for _ in range(3)]
    torch.manual_seed(99)  # the global stream does not matter
    assert ids(batches(epoch=2)) == epochs[2]
    assert ids(batches(epoch=0)) == epochs[0]
    assert ids(batches(seed=1)) != epochs[0]
    assert len({str(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"), [(50, 16, [16, 16, 16, 2]), (49, 16, [16, 16, 16]), (48, 16, [16] * 3), (2, 512, [2])]
)
def test_remainder_is_used_unless_it_is_a_single_row(n, batch_size, sizes):
    data = batches(batch_size, rows=ROWS[:n])
    epoch = ids(data)
    assert [len(batch) for batch in epoch] == sizes
    assert data.batches_per_epoch == len(sizes)
    assert len({row for batch in epoch for row in batch}) == sum(sizes)


def test_offset_numbers_rows_through_the_whole_run():
    data = batches(12)
    for epoch in range(3):
        start = 0
        for batch in data:
            assert batch["offset"] == 50 * epoch + start
            start += len(batch["normal"])


@pytest.mark.parametrize(("n", "batch_size"), [(48, 12), (50, 20), (50, 50), (44, 16)])
def test_two_ranks_see_together_what_one_process_sees(n, batch_size):
    rows = ROWS[:n]
    one = batches(batch_size, rows=rows)
    two = [batches(batch_size, rank=rank, world_size=2, rows=rows) for rank in (0, 1)]
    for _ in range(2):
        whole, parts = list(one), [list(data) for data in two]
        assert len(parts[0]) == len(parts[1]) == len(whole)
        for batch, *halves in zip(whole, *parts, strict=True):
            assert torch.equal(torch.cat([half["normal"] for half in halves]), batch["normal"])
            assert len(halves[0]["normal"]) == len(halves[1]["normal"])
        mixed = mixtures(filled(), whole)
        for together, *halves in zip(mixed, *(mixtures(filled(), part) for part in parts), strict=True):
            assert torch.equal(torch.cat(halves), together)


@pytest.mark.parametrize("n", [50, 51, 52, 53, 54])
def test_ranks_have_equal_shares_whatever_remains(n):
    g = torch.Generator().manual_seed(0)
    parts = [
        ids(batches(16, rank=rank, world_size=3, rows=torch.randperm(n, generator=g).sort().values[:, None].float()))
        for rank in range(3)
    ]
    for shares in zip(*parts, strict=True):
        assert len({len(share) for share in shares}) == 1
        assert all(len(share) >= 2 for share in shares)
    seen = [row for part in parts for batch in part for row in batch]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize(("min_batches", "passes"), [(1, 1), (5, 1), (6, 2), (10, 2), (11, 3), (27, 6)])
def test_a_small_bank_is_passed_until_there_are_enough_batches(min_batches, passes):
    def data(epoch=0, **options):
        filled_data = PatchBatches(10, min_batches=min_batches, **options)
        filled_data.fill(ROWS)
        filled_data.epoch = epoch
        return filled_data

    once = data()
    assert once.batches_per_epoch == 5 * passes >= min_batches
    epochs = [list(once) for _ in range(3)]
    orders = []
    for number, epoch in enumerate(epochs):
        assert len(epoch) == 5 * passes
        assert [batch["offset"] for batch in epoch] == [10 * (5 * passes * number + i) for i in range(5 * passes)]
        for start in range(0, 5 * passes, 5):  # each pass covers every row once
            rows = [row for batch in ids(epoch[start : start + 5]) for row in batch]
            assert sorted(rows) == list(range(50))
            orders.append(tuple(rows))
    assert len(set(orders)) == 3 * passes
    assert ids(data(epoch=2)) == ids(epochs[2])
    halves = [ids(data(rank=rank, world_size=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == ids(epochs[0])


@pytest.mark.parametrize("min_batches", [0, -3])
def test_fewest_batches_below_one_are_refused(min_batches):
    with pytest.raises(InputError, match="min_batches must be at least 1"):
        PatchBatches(min_batches=min_batches)


@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (0, 1), (3, 2)])
def test_batch_size_too_small_is_refused(batch_size, world_size):
    with pytest.raises(InputError, match=f"batch_size must be at least 2 per process, got {batch_size}"):
        PatchBatches(batch_size, world_size=world_size)


def test_normal_bank_too_small_is_refused():
    with pytest.raises(InputError, match="holds 1 patches; at least 2 are needed"):
        batches(rows=ROWS[:1])
    with pytest.raises(InputError, match="holds 3 patches; at least 4 are needed"):
        batches(world_size=2, rows=ROWS[:3])


# --- mixing --------------------------------------------------------------------------------------------------------


def test_target_is_zero_for_normal_and_one_for_mixed_rows():
    batch = next(iter(batches(10)))
    normal, target, args, options = prepare_patch_batch(batch, device="cpu")
    assert torch.equal(normal, batch["normal"])
    assert target.tolist() == [0.0] * 10 + [1.0] * 10
    assert args == ()
    assert options == {"offset": 0}


@pytest.mark.parametrize(("alpha_min", "alpha_max"), [(0.1, 1.0), (0.4, 0.4), (1.0, 1.0)])
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_mixture_is_that_of_eq_6(scale, alpha_min, alpha_max):
    g = torch.Generator().manual_seed(1)
    normal, mined = scale * torch.randn(40, 3, generator=g), scale * torch.randn(5, 3, generator=g)
    catch = Catch()
    filled(3, alpha_min, alpha_max, mined)(normal, catch, offset=1000)
    mixed, source, alpha = mixup(normal, mined, 3, 1000, alpha_min, alpha_max)
    assert torch.equal(catch.rows[40:], mixed)
    for i in range(40):
        m_n, m_a, a = normal[i].tolist(), mined[source[i]].tolist(), float(alpha[i])
        assert alpha_min - 1e-7 <= a <= alpha_max + 1e-7
        naive = [a * y + (1 - a) * x for x, y in zip(m_n, m_a, strict=True)]
        assert mixed[i].tolist() == pytest.approx(naive, rel=1e-4, abs=1e-6 * scale)


def test_scores_are_those_of_normal_then_mixed_rows():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    scores = filled()(ROWS, network, offset=5)
    mixed, _, _ = mixup(ROWS, MINED, 0, 5, 0.1, 1.0)
    assert torch.equal(scores, network(torch.cat([ROWS, mixed])))


def test_partners_depend_on_seed_and_row_number_alone():
    catch = Catch()
    filled()(ROWS, catch, offset=100)
    whole = catch.rows[50:].clone()
    filled()(ROWS[20:], catch, offset=120)
    assert torch.equal(catch.rows[30:], whole[20:])
    filled(seed=1)(ROWS, catch, offset=100)
    assert not torch.equal(catch.rows[50:], whole)
    filled()(ROWS, catch, offset=101)
    assert not torch.equal(catch.rows[50:], whole)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.1, 0.5), (0.6, 0.5), (0.1, 1.1), (float("nan"), 1.0)])
def test_mixing_factor_outside_its_range_is_refused(low, high):
    with pytest.raises(InputError, match="0 < alpha_min <= alpha_max <= 1"):
        MixingInferer(0, low, high)


# --- resuming, in the engine that MONAI's trainer is --------------------------------------------------------------


def train(epochs, state=None, min_batches=1):
    """Train from `state`, (epoch, weights), to `epochs`, in float64 so that sums repeat exactly; return the weights."""
    data, inferer = PatchBatches(8, min_batches=min_batches), filled(mined=MINED.double())
    data.fill(ROWS.double())
    torch.manual_seed(5)
    network = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    seen = []

    def step(engine, batch):
        normal, target, _, options = prepare_patch_batch(batch)
        seen.append((engine.state.epoch, options["offset"]))
        loss = (inferer(normal, network, **options) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    engine = Engine(step)

    @engine.on(Events.STARTED)
    def resume():
        engine.state.epoch_length = data.batches_per_epoch
        if state is not None:
            network.load_state_dict(state[1])
            engine.state.epoch = data.epoch = state[0]
            engine.state.iteration = state[0] * data.batches_per_epoch

    engine.run(DataLoader(data, batch_size=None), max_epochs=epochs)
    return {key: value.clone() for key, value in network.state_dict().items()}, seen


@pytest.mark.parametrize(("min_batches", "per_epoch"), [(1, 7), (10, 14)])
def test_resumed_run_ends_at_the_weights_of_an_uninterrupted_one(min_batches, per_epoch):
    whole, seen = train(4, None, min_batches)
    half, before = train(2, None, min_batches)
    resumed, after = train(4, (2, half), min_batches)
    assert before + after == seen
    assert [epoch for epoch, _ in seen] == [1 + i // per_epoch for i in range(4 * per_epoch)]
    for key, value in whole.items():
        assert torch.equal(resumed[key], value)
        assert not torch.equal(half[key], value)


@pytest.mark.parametrize("m", [5, 64, 400])
@pytest.mark.parametrize(("depth", "bias"), [(1, True), (1, False), (2, True), (3, False)])
def test_mixing_behind_the_first_layer_gives_the_same_loss_and_gradients(depth, bias, m):
    # in float32, against mixing before the first layer in float64: scores, loss and all gradients differ by rounding only
    g = torch.Generator().manual_seed(m)
    normal, mined = torch.randn(64, 40, generator=g), torch.randn(m, 40, generator=g) + 0.5
    torch.manual_seed(depth)
    network = Discriminator(40, depth, 16, bias)
    found = []
    for hidden, dtype in ((True, torch.float32), (False, torch.float64)):
        inferer = MixingInferer(seed=3, alpha_min=0.2, mix_hidden=hidden)
        inferer.fill(mined.to(dtype))
        twin = copy.deepcopy(network).to(dtype)
        scores = inferer(normal.to(dtype), twin, offset=2**33)
        loss = HingeLoss()(scores, torch.arange(128) // 64)
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        found.append([scores.detach().double(), loss.detach().double(), *(x.double() for x in gradients)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)


def test_mix_hidden_is_an_option_of_the_bundle(tmp_path):
    for asked in (False, True):
        options = {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), "mix_hidden": asked}
        workflow = ConfigWorkflow(config_file=str(CONFIG), workflow_type="train", logging_file=False, **options)
        assert workflow.parser.get_parsed_content("train#inferer").mix_hidden is asked


# --- a bank on disk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lot_rows", [1, 10, 23, 1000])
@pytest.mark.parametrize(("batch_size", "world_size", "min_batches"), [(10, 1, 1), (12, 2, 9), (16, 3, 1)])
def test_batches_from_disk_are_those_from_memory(tmp_path, monkeypatch, lot_rows, batch_size, world_size, min_batches):
    monkeypatch.setattr(mixing, "LOT_BYTES", lot_rows * 12)  # the size of a lot must not change the order
    save_rows(tmp_path / "bank", ROWS)
    for rank in range(world_size):
        inside, outside = (PatchBatches(batch_size, 3, rank, world_size, min_batches) for _ in range(2))
        inside.fill(ROWS)
        outside.fill(BankFile(tmp_path / "bank"))
        assert inside.batches_per_epoch == outside.batches_per_epoch
        for _ in range(2):
            for ours, theirs in zip(outside, inside, strict=True):
                assert torch.equal(ours["normal"], theirs["normal"])
                assert ours["offset"] == theirs["offset"]


def test_a_bank_on_disk_that_breaks_ends_the_training(tmp_path):
    save_rows(tmp_path / "bank", ROWS)
    data = PatchBatches(10)
    data.fill(BankFile(tmp_path / "bank"))
    (tmp_path / "bank").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        list(data)
