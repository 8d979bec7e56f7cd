"""The discriminator, the network from image to patch scores, and Eq. 8."""

import warnings

import pytest
import torch

from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import create_backbone
from monai_wscxr.features.patches import PatchFeatures, to_rows
from monai_wscxr.model.networks import Discriminator, EpochScores, WSCXRNet, image_scores, without_mean
from monai_wscxr.model.scores import anomaly_score
from monai_wscxr.model.whitening import NormalWhitening


def test_distance_is_added_in_evaluation_mode_only():
    net = Discriminator(4).requires_grad_(False)
    rows = torch.randn(7, 4)
    learned = net.train()(rows)
    net.distance_weight.fill_(0.3)
    assert torch.equal(net.train()(rows), learned)
    naive = [float(s) + 0.3 * sum(v * v for v in r) / 4 for s, r in zip(learned, rows.tolist(), strict=True)]
    assert net.eval()(rows).tolist() == pytest.approx(naive, abs=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_discriminator_scores_rows_and_maps_alike(depth):
    torch.manual_seed(depth)
    net = Discriminator(6, depth, width=5).eval()
    net.requires_grad_(False)
    features = torch.randn(2, 6, 3, 4)
    scores = net(features)
    assert scores.shape == (2, 1, 3, 4)
    assert net(to_rows(features)).shape == (24,)
    assert float((net(to_rows(features)).reshape(2, 1, 3, 4) - scores).abs().max()) < 1e-6
    for b in range(2):
        for y in range(3):
            for x in range(4):
                assert float(net(features[b, :, y, x][None])) == pytest.approx(float(scores[b, 0, y, x]), abs=1e-5)


def test_discriminator_of_depth_one_is_a_linear_function():
    torch.manual_seed(0)
    net = Discriminator(4).requires_grad_(False)
    (linear,) = net.layers
    rows = torch.randn(7, 4)
    naive = [
        sum(w * v for w, v in zip(linear.weight[0].tolist(), row, strict=True)) + float(linear.bias)
        for row in rows.tolist()
    ]
    assert net(rows).tolist() == pytest.approx(naive, abs=1e-5)
    assert Discriminator(4, bias=False).layers[-1].bias is None
    assert [type(m).__name__ for m in Discriminator(4, 3).layers] == ["Linear", "BatchNorm1d", "LeakyReLU"] * 2 + [
        "Linear"
    ]


@pytest.mark.parametrize("arguments", [(0, 1, 1), (4, 0, 1), (4, 2, 0), (4, -1, 8)])
def test_discriminator_sizes_below_one_are_refused(arguments):
    with pytest.raises(InputError, match="channels, depth and width must be >= 1"):
        Discriminator(*arguments)


@pytest.mark.parametrize("arguments", [(4, 65), (4, 10**9), (4, 2, 65_537)])
def test_discriminator_sizes_that_could_not_be_loaded_are_refused(arguments):
    with pytest.raises(InputError, match="depth must be at most 64 and width at most 65,536"):
        Discriminator(*arguments)


@pytest.mark.parametrize("depth", [1, 2])
def test_network_scores_every_patch_of_eq_8(make_features, depth):
    features = make_features(("3", "2"))
    torch.manual_seed(0)
    net = WSCXRNet(features, Discriminator(features.channels, depth)).eval().requires_grad_(False)
    image = torch.randn(2, 3, 64, 64)
    scores = net(image)
    assert scores.shape == (2, 1, *features.grid(64))
    rows = net.discriminator(to_rows(features(image)))
    assert float((scores.flatten() - rows).abs().max()) < 1e-5


def test_only_the_discriminator_learns(make_features):
    features = make_features()
    net = WSCXRNet(features, Discriminator(features.channels, 2)).train()
    net(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in net.discriminator.parameters())
    assert all(p.grad is None for p in features.parameters())
    assert net.discriminator.training
    assert not any(m.training for m in features.backbone.modules())


@pytest.mark.parametrize(
    ("name", "layers"),
    [("efficientnet_lite0", None), ("timm/test_resnet", ["4", "2"]), ("torchvision/resnet18", ["layer2", "layer3"])],
)
@pytest.mark.parametrize(("aligned", "align_to"), [(None, "coarsest"), (7, "finest")])
def test_scripted_network_gives_equal_scores(name, layers, aligned, align_to):
    torch.manual_seed(0)
    backbone = create_backbone(name, layers, weights="default" if layers is None else "none")
    features = PatchFeatures(backbone, 5, aligned, align_to)
    whitening = NormalWhitening(features.channels)
    whitening.fit(torch.randn(50, features.channels), 1.0)
    net = WSCXRNet(features, Discriminator(features.channels, 2, neighbourhood=5), whitening).eval()
    net.discriminator.distance_weight.fill_(0.1)
    net.discriminator.opacity_map.normal_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but MONAI's exporter still needs it
        scripted = torch.jit.script(net)
    for size in (64, 96):
        image = torch.randn(2, 3, size, size)
        with torch.no_grad():
            expected, scores = net(image), scripted(image)
        assert scores.shape == expected.shape
        assert float((scores - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_scores_of_every_epoch_share_the_features(make_features):
    features = make_features()
    torch.manual_seed(0)
    discriminators = [Discriminator(features.channels, 2).eval() for _ in range(3)]
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        scores = EpochScores(WSCXRNet(features, discriminators[0]), discriminators)(image)
        single = [WSCXRNet(features, d).eval()(image) for d in discriminators]
    assert scores.shape == (2, 3, 4, 4)
    for epoch in range(3):
        assert torch.equal(scores[:, epoch : epoch + 1], single[epoch])
    assert not torch.equal(scores[:, 0], scores[:, 1])


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_scores_from_features_are_those_from_images(make_features, share):
    features = make_features()
    torch.manual_seed(0)
    whitening = NormalWhitening(features.channels)
    whitening.fit(torch.randn(50, features.channels), 1.0)
    discriminators = [Discriminator(features.channels).eval() for _ in range(2)]
    for weight, discriminator in enumerate(discriminators, 1):
        discriminator.distance_weight.fill_(0.1 * weight)
    network = WSCXRNet(features, discriminators[1], whitening).eval()
    image = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        known = features(image)
        expected = torch.from_numpy(anomaly_score(network(image), share))
    torch.testing.assert_close(image_scores(network.patch_scores, known, share, batch_size=2), expected)
    epochs = EpochScores(network, discriminators).eval()
    both = image_scores(epochs.patch_scores, known, share, batch_size=2)
    assert both.shape == (5, 2)
    torch.testing.assert_close(both[:, 1:], expected)
    assert not torch.allclose(both[:, :1], expected)


@pytest.mark.parametrize(("neighbourhood", "size"), [(3, (10, 10)), (3, (7, 9)), (5, (11, 10))])
def test_the_mean_over_the_neighbourhood_is_undone(neighbourhood, size):
    values = torch.rand(2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean = torch.nn.functional.avg_pool2d(
        values, neighbourhood, stride=1, padding=neighbourhood // 2, count_include_pad=True
    )
    torch.testing.assert_close(without_mean(mean, neighbourhood, 1e-12), values, rtol=1e-4, atol=1e-4)
    default = without_mean(mean, neighbourhood)
    assert (default - values).square().mean() < 0.35 * (mean - values).square().mean()
    assert torch.equal(without_mean(values, 1), values)


@pytest.mark.parametrize("size", [10, 40])
def test_undoing_the_mean_does_not_amplify_noise_without_bound(size):
    made = without_mean(torch.eye(size, dtype=torch.float64)[None], 3)[0]
    assert float(torch.linalg.matrix_norm(made, 2)) < 10**2


def test_opacities_of_a_map_are_sharp_and_leave_the_score_alone():
    discriminator = Discriminator(2, zero_start=True, neighbourhood=3).eval()
    discriminator.opacity_map.copy_(torch.tensor([0.0, 2.0]))
    features = torch.zeros(1, 2, 10, 10)
    features[0, 1, 4, 6] = 9.0
    blurred = torch.nn.functional.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=True)
    with torch.no_grad():
        found = discriminator(blurred)
    assert float(found.mean()) == pytest.approx(0.5, abs=1e-5)  # what the bias gives to every patch
    assert int(found.argmax()) == 46
    assert float(found.flatten().sort().values[-2] - 0.5) < 0.3 * float(found.max() - 0.5)
