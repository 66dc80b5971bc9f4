"""Metrics on features: by hand, against independent implementations, and in the right direction."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.stats
import torch

from metrics import distances, diversity, manifold, memorisation, perceptual_path, registry


def features(size: int, width: int = 6, *, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(99))
    return torch.randn(size, width, generator=rng) @ mix + shift


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).unsqueeze(1)


# Frechet distance


def test_frechet_distance_in_one_dimension():
    # Means 1 and 4, variances 1 and 4: 3^2 + (1 - 2)^2.
    a = distances.moments(column(0, 1, 2))
    b = distances.moments(column(2, 4, 6))
    assert distances.frechet_distance(a, b) == pytest.approx(10)


@pytest.mark.parametrize("count", [50, 9000])  # in one block, and in two
def test_moments_are_numpys(count):
    x = features(count)
    mean, cov = distances.moments(x)
    np.testing.assert_allclose(mean, x.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(x.double().numpy(), rowvar=False), rtol=1e-12)


@pytest.mark.parametrize("width", [3, 40])
def test_frechet_distance_agrees_with_sqrtm(width):
    x, y = features(200, width), features(300, width, seed=1, shift=0.5).square()
    mean_x, mean_y = x.double().mean(0).numpy(), y.double().mean(0).numpy()
    cov_x, cov_y = (np.cov(v.double().numpy(), rowvar=False) for v in (x, y))
    root = scipy.linalg.sqrtm(cov_x @ cov_y).real
    expected = np.square(mean_x - mean_y).sum() + np.trace(cov_x + cov_y - 2 * root)
    found = distances.frechet_distance(distances.moments(x), distances.moments(y))
    assert found == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_with_fewer_images_than_features():
    few = distances.moments(features(10, 40))
    assert distances.frechet_distance(few, few) == pytest.approx(
        0, abs=1e-5 * float(few.cov.trace())
    )


# Kernel distance


def test_squared_mmd_by_hand():
    # k(0, 0) = k(0, 1) = 1 and k(1, 1) = 8; without the diagonal 1 + 1 - 2 * (1 + 1 + 1 + 8) / 4.
    assert distances.squared_mmd(column(0, 1), column(0, 1)) == pytest.approx(-3.5)


def test_squared_mmd_agrees_with_direct_sums():
    x, y = features(9).double().tolist(), features(7, seed=1, shift=1).double().tolist()

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / 6 + 1) ** 3

    within = sum(
        math.fsum(kernel(a, b) for a, b in itertools.permutations(v, 2)) / (len(v) * (len(v) - 1))
        for v in (x, y)
    )
    across = math.fsum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))
    found = distances.squared_mmd(torch.tensor(x), torch.tensor(y))
    assert found == pytest.approx(within - 2 * across, rel=1e-5)


def test_squared_mmd_agrees_with_sklearn():
    polynomial = pytest.importorskip("sklearn.metrics.pairwise").polynomial_kernel
    x, y = features(40).double().numpy(), features(50, seed=1, shift=0.3).double().numpy()
    xx, yy, xy = (polynomial(a, b, degree=3, coef0=1) for a, b in ((x, x), (y, y), (x, y)))
    within = [k[~np.eye(len(k), dtype=bool)].mean() for k in (xx, yy)]
    found = distances.squared_mmd(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(sum(within) - 2 * xy.mean(), rel=1e-5)


def test_kernel_distance_of_halves_of_one_set_is_zero_within_its_error():
    halves = features(1000).split(500)
    value, error = distances.kernel_distance(*halves, subset_size=200)
    assert error > 0
    assert abs(value) < error


def test_floor_of_the_kernel_distance():
    # Two halves of (0, 0, 1, 1): alike, 1 + 8 - 2 * (1 + 1 + 8 + 1) / 4 less diagonals, or unlike.
    alike = distances.squared_mmd(column(0, 1), column(0, 1))
    unlike = distances.squared_mmd(column(0, 0), column(1, 1))
    floor = distances.kernel_floor(column(0, 0, 1, 1), splits=1)
    assert floor == pytest.approx(-alike) or floor == pytest.approx(unlike)
    x = features(400)
    chance = distances.kernel_floor(x)
    assert 0 < chance < 0.3 * distances.squared_mmd(x, features(400, seed=1, shift=1.0))
    assert distances.kernel_floor(x, size=50) > 2 * chance


def test_kernel_distance_grows_with_the_shift():
    real = features(400)
    values = [
        distances.kernel_distance(real, features(400, seed=1, shift=s), subset_size=100)[0]
        for s in (0.0, 1.0, 2.0)
    ]
    assert values == sorted(values) and values[1] > 5 * abs(values[0])


def test_kernel_distance_depends_on_its_seed_alone():
    x, y = features(100), features(100, seed=1)
    first, again, other = (
        distances.kernel_distance(x, y, subset_size=20, seed=s) for s in (3, 3, 4)
    )
    assert first == again != other


# Inception score


def test_inception_score_counts_classes():
    sure = torch.eye(4).repeat(10, 1)
    assert distances.inception_score(sure, splits=10) == pytest.approx((4, 0))
    assert distances.inception_score(torch.full((40, 4), 0.25)) == pytest.approx((1, 0))


def test_inception_score_splits_in_order():
    # One class in the first half, two in the second.
    first, second = torch.eye(2)[[0, 0]], torch.eye(2)
    mean, std = distances.inception_score(torch.cat([first, second]), splits=2)
    assert (mean, std) == pytest.approx((1.5, 0.5))


def test_inception_score_agrees_with_scipy():
    p = features(60).double().softmax(1)
    scores = [
        math.exp(np.mean([scipy.stats.entropy(row, part.mean(0)) for row in part]))
        for part in np.split(p.numpy(), 10)
    ]
    found = distances.inception_score(p)
    assert found == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-9)


# Precision, recall, density, coverage


def test_precision_recall_by_hand():
    # Balls of real points reach 1; 0.5 lies in some, 10 in none. Balls of fakes reach 9.5.
    assert manifold.precision_recall(column(0, 1, 2, 3), column(0.5, 10), k=1) == (0.5, 1.0)


def test_density_coverage_by_hand():
    # 0.5 lies in the balls of 0 and 1: two hits over k = 1 and two fakes; two of four covered.
    assert manifold.density_coverage(column(0, 1, 2, 3), column(0.5, 10), k=1) == (1.0, 0.5)


def test_radii_by_hand():
    torch.testing.assert_close(manifold.radii(column(0, 1, 3, 7), 2).tolist(), [3.0, 2.0, 3.0, 6.0])


def test_too_few_images_for_neighbours_are_refused():
    with pytest.raises(ValueError, match="got k=3, 3 images"):
        manifold.precision_recall(features(3), features(9))


def test_published_precision_rounds_to_half():
    real, fake = column(0, 2048), column(4097, 9000)  # a half knows 4096 and 4100
    assert manifold.precision_recall(real, fake, k=1)[0] == 0
    assert manifold.precision_recall(real, fake, k=1, half=True)[0] == 0.5
    found = {n: registry.find(n).function.keywords for n in ("pr50k3_full", "pr50k3")}
    assert found == {"pr50k3_full": {"half": True}, "pr50k3": {"half": True}}


def test_precision_recall_and_density_agree_with_sklearn():
    neighbours = pytest.importorskip("sklearn.neighbors").NearestNeighbors
    real, fake = features(150).double().numpy(), features(130, seed=1, shift=0.7).double().numpy()

    def inside(points, centres, k):
        reach = neighbours(n_neighbors=k + 1).fit(centres).kneighbors(centres)[0][:, -1]
        return np.linalg.norm(points[:, None] - centres[None], axis=2) <= reach

    r, f = torch.from_numpy(real), torch.from_numpy(fake)
    expected = inside(fake, real, 3).any(1).mean(), inside(real, fake, 3).any(1).mean()
    assert manifold.precision_recall(r, f, k=3) == expected
    hits = inside(fake, real, 5)
    assert manifold.density_coverage(r, f, k=5) == (hits.sum() / (5 * 130), hits.any(0).mean())


def test_blocks_of_distances_change_nothing(monkeypatch):
    real, fake = features(60), features(50, seed=1)
    whole = manifold.precision_recall(real, fake), manifold.density_coverage(real, fake)
    monkeypatch.setattr(manifold, "ENTRIES", 500)
    assert (manifold.precision_recall(real, fake), manifold.density_coverage(real, fake)) == whole


def test_copies_have_full_precision_and_a_collapse_no_coverage():
    real = features(200)
    precision, _ = manifold.precision_recall(real, real[:50].repeat(2, 1))
    assert precision == 1
    collapsed = real[:1] + 1e-3 * features(200, seed=1)
    assert manifold.precision_recall(real, collapsed)[1] < 0.05
    assert manifold.density_coverage(real, collapsed)[1] < 0.1


# Memorisation


def test_nearness_by_hand():
    near = memorisation.nearest(column(1, 4, -2), column(0, 5))
    assert near.tolist() == [1, 1, 2]
    result = memorisation.nearness(torch.tensor([1.0, 1, 3]), torch.tensor([2.0, 4, 6]))
    assert result == (0.25, 2 / 3, 1, 4)


def test_mann_whitney_by_hand():
    # All fakes nearer: U = 0, of mean 2 and variance 2 * 2 * 5 / 12.
    z, nearer = memorisation.mann_whitney(torch.tensor([0.1, 0.2]), torch.tensor([1.0, 2.0]))
    assert (z, nearer) == pytest.approx((-2 / math.sqrt(5 / 3), 1))


@pytest.mark.parametrize("digits", [6, 1])  # with one digit there are ties
def test_mann_whitney_agrees_with_scipy(digits):
    q, p = features(40, 1)[:, 0].round(decimals=digits), features(60, 1, seed=1, shift=0.2)[:, 0]
    p = p.round(decimals=digits)
    z, nearer = memorisation.mann_whitney(q, p)
    expected = scipy.stats.mannwhitneyu(
        q.double().numpy(),
        p.double().numpy(),
        alternative="less",
        method="asymptotic",
        use_continuity=False,
    )
    assert scipy.stats.norm.cdf(z) == pytest.approx(expected.pvalue, rel=1e-9)
    assert 1 - nearer == pytest.approx(expected.statistic / (40 * 60))


@pytest.mark.parametrize("cells", [1, 4])
def test_copying_is_caught_and_fresh_images_are_not(cells):
    train, heldout, fresh = (features(200, seed=s) for s in range(3))
    copied = train + 0.01 * features(200, seed=3)
    caught = memorisation.copying_test(train, copied, heldout, cells=cells)
    assert caught.score < -5 and caught.p_value < 1e-6 and caught.nearer > 0.95
    honest = memorisation.copying_test(train, fresh, heldout, cells=cells)
    assert abs(honest.score) < 3 and 0.01 < honest.p_value < 0.99
    far = memorisation.copying_test(train, fresh + 20, heldout, cells=cells)
    assert far.score > 5 and far.p_value > 0.99


def test_cells_of_the_copying_test_are_weighted_by_heldout_images():
    # Around 0 fakes are nearer, around 100 they are not; three quarters of the held-out are at 0.
    train = column(0, 0.1, 100, 100.1)
    fake = column(0.05, 0.051, 100.5, 100.6)
    heldout = column(0.5, 0.6, 0.7, 100.04, 100.05, 100.06)[[0, 1, 2, 3]]
    low = memorisation.mann_whitney(torch.tensor([0.05, 0.049]), torch.tensor([0.4, 0.5, 0.6]))[0]
    high = memorisation.mann_whitney(torch.tensor([0.4, 0.5]), torch.tensor([0.04]))[0]
    result = memorisation.copying_test(train, fake, heldout, cells=2)
    assert result.score == pytest.approx((3 * low + high) / 4)


# Intra-cluster distance


def test_intra_cluster_by_hand():
    # Squared distances 1, 1, 4 in the first cluster, 9 in the second; one single, one empty.
    clusters = [column(0, 1, 2), column(0, 3), column(5), torch.zeros(0, 1)]
    assert diversity.intra_cluster(clusters) == ((2 + 9) / 2, 2, 1)
    assert diversity.intra_cluster(clusters[2:]) == (0, 0, 1)


def test_mean_pairwise_distance_agrees_with_scipy():
    x = features(30)
    expected = scipy.spatial.distance.pdist(x.double().numpy(), "sqeuclidean").mean()
    assert diversity.mean_pairwise(x) == pytest.approx(expected, rel=1e-5)


def test_nearest_agrees_with_scipy():
    x, train = features(30), features(20, seed=1)
    expected = scipy.spatial.cKDTree(train.double().numpy()).query(x.double().numpy())[0]
    np.testing.assert_allclose(memorisation.nearest(x, train), expected, rtol=1e-6)


def test_images_go_to_the_nearest_centre():
    assert diversity.assign(column(0, 4, 6, 11), column(10, 0, 5)).tolist() == [1, 2, 2, 0]


def test_members_are_the_first_of_each_cluster():
    assigned = torch.tensor([2] + [0] * 80 + [2] * 3)
    first, empty, last = diversity.choose_members(assigned, 3)
    assert first.tolist() == list(range(1, 51)) and len(empty) == 0
    assert last.tolist() == [0, 81, 82, 83]
    moved = diversity.choose_members(torch.where(assigned == 2, 1, assigned), 3)
    assert torch.equal(moved[0], first)  # whoever leaves one cluster for another


def test_a_collapse_has_next_to_no_diversity():
    spread, same = features(20), features(1).repeat(20, 1) + 1e-4 * features(20, seed=1)
    assert diversity.intra_cluster([same]).mean < 1e-6 * diversity.intra_cluster([spread]).mean


# Path length


def test_slerp_keeps_to_the_sphere():
    a, b = torch.tensor([[2.0, 0]]), torch.tensor([[0, 3.0]])
    half = perceptual_path.slerp(a, b, torch.tensor([[0.5]]))
    torch.testing.assert_close(half, torch.full((1, 2), math.sqrt(0.5)))
    third = perceptual_path.slerp(a, b, torch.tensor([[1 / 3]]))
    torch.testing.assert_close(third, torch.tensor([[math.sqrt(0.75), 0.5]]))


def test_slerp_agrees_with_scipy():
    a, b = (torch.nn.functional.normalize(features(1, seed=s).double()) for s in (0, 1))
    expected = scipy.spatial.geometric_slerp(a[0].numpy(), b[0].numpy(), 0.3)
    found = perceptual_path.slerp(2 * a, 3 * b, torch.tensor([[0.3]]))
    np.testing.assert_allclose(found[0], expected, rtol=1e-7)


def test_trimmed_mean_drops_a_percent_at_each_end():
    lengths = torch.arange(200.0)
    lengths[-1] = 1e9
    # The percentiles are the values at 1.99 and 197.01, taken outwards: 1 and 198 stay.
    assert perceptual_path.trimmed_mean(lengths) == pytest.approx(np.arange(1, 199).mean())
