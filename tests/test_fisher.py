"""Fisher information: closed forms, the laws of the estimator, its file and its command."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner

from stylegan2_fewshot import distributed, tensor_file
from stylegan2_fewshot.fisher import estimator as fisher
from stylegan2_fewshot.fisher import file as fisher_file
from stylegan2_fewshot.fisher.estimator import Estimator, Settings, Sums, estimate
from stylegan2_fewshot.fisher.file import Fisher
from tools import fisher as command
from training import pickles

Z_DIM = 3
MANY = Settings(samples=4000)


class Linear(torch.nn.Module):
    """A generator whose image `[N, 1, 1, 4]` is `weight @ z`."""

    z_dim, c_dim = Z_DIM, 0

    def __init__(self, first_column=0.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4, Z_DIM))
        self.weight.data[:, 0] = first_column

    def forward(self, z, c, **options):
        return (z @ self.weight.t())[:, None, None]


class Logistic(torch.nn.Module):
    """A discriminator whose logit is `<v, img>`."""

    def __init__(self):
        super().__init__()
        self.v = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 3.0]))

    def forward(self, img, c, **options):
        return img.flatten(1) @ self.v[:, None]


def closed_form(first_column):
    """Return F of the linear generator: v_i^2 E[sigmoid(-s)^2 z_j^2], s = <v, W z>.

    With only the first column of W different from 0, s = a z_0, and the expectations over z_0 are
    integrals in one dimension.
    """
    v = Logistic().v.detach().double().numpy()
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / math.sqrt(2 * math.pi)
    square = (1 / (1 + np.exp((v * first_column).sum() * nodes))) ** 2
    expected = [(weights * square * nodes**2).sum(), *[(weights * square).sum()] * (Z_DIM - 1)]
    return v[:, None] ** 2 * np.array(expected)


@pytest.fixture(scope="module")
def nets():
    """Return a small conditional G and D with noise that matters."""
    return tiny.networks(c_dim=3, noise=0.3, group=4, channel_max=16)


def distance(one, other):
    """Return the largest difference between tensors of a name, relative to their size."""
    norms = [(one[n] - other[n]).norm() / other[n].norm().clamp(min=1e-12) for n in other]
    return max(norms).item()


@pytest.mark.parametrize("first_column", [0.0, 0.4])
def test_equals_the_closed_form(first_column):
    found = estimate(Linear(first_column), Logistic(), MANY).values["G.weight"].double().numpy()
    expected = closed_form(first_column)
    assert np.abs(found / expected - 1).max() < 0.08  # 4 / sqrt(4000), and z^2 has variance 2
    # What other implementations compute: raw sums, and the squared mean gradient.
    assert np.abs(found * MANY.samples / expected - 1).min() > 100
    [gradients] = Estimator(Linear(first_column), Logistic(), MANY, None).gradients(range(500))
    squared_mean = gradients.mean(0).square().numpy()
    assert (squared_mean / expected < 0.5).all()


def test_of_the_discriminator():
    settings = Settings(samples=4000, discriminator=True)
    values = estimate(Linear(0.4), Logistic(), settings).values
    assert set(values) == {"G.weight", "D.v"}
    # d/dv_i = sigmoid(-s) W_i z: F_i = W_i^2 E[sigmoid(-s)^2 z_0^2].
    expected = closed_form(0.4)[0, 0] * 0.4**2  # v_0 = 1
    assert values["D.v"].numpy() == pytest.approx(np.full(4, expected), rel=0.08)


def test_does_not_shrink_with_batch_or_grow_with_samples():
    few, many = (Settings(samples=n) for n in (500, 2000))
    one = estimate(Linear(), Logistic(), few, batch=1).values["G.weight"]
    all_ = estimate(Linear(), Logistic(), few, batch=500).values["G.weight"]
    assert torch.allclose(one, all_, rtol=1e-5)
    ratio = estimate(Linear(), Logistic(), many).values["G.weight"] / all_
    assert (ratio - 1).abs().max() < 0.35


def test_standard_error_is_the_spread_of_repeated_estimates():
    n, v_square = 200, Logistic().v.detach().square().mean().item()
    runs = [estimate(Linear(), Logistic(), Settings(samples=n, seed=s)) for s in range(40)]
    means = torch.stack([run.values["G.weight"].mean() for run in runs])
    stated = np.mean([run.meta["standard_error"]["G.weight"] for run in runs])
    # At W = 0 a sample's mean square is v^2 / 4 times the mean of three z^2: variance 2 / 3.
    assert stated == pytest.approx(v_square / 4 * math.sqrt(2 / 3 / n), rel=0.05)
    assert means.std().item() == pytest.approx(stated, rel=0.4)


def test_one_sample_has_no_standard_error():
    meta = estimate(Linear(), Logistic(), Settings(samples=1)).meta
    assert meta["standard_error"] == {"G.weight": None}


def test_vectorized_equals_the_loop(nets, capsys):
    settings = Settings(samples=6, discriminator=True)
    loop = estimate(*nets, settings, vectorized=False)
    assert all((value >= 0).all() for value in loop.values.values())
    for batch in (1, 4):
        assert distance(estimate(*nets, settings, batch=batch).values, loop.values) < 1e-5
    assert "one sample at a time" not in capsys.readouterr().out


def test_names_and_shapes_are_those_of_the_parameters(nets):
    values = estimate(*nets, Settings(samples=1)).values
    assert {n: v.shape for n, v in values.items()} == {
        f"G.{name}": p.shape for name, p in nets[0].named_parameters()
    }


def test_networks_and_random_numbers_are_left_alone(nets):
    G, D = (net.train().requires_grad_(True) for net in nets)
    before = {name: t.clone() for name, t in G.state_dict().items()}
    state = torch.get_rng_state()
    estimate(G, D, Settings(samples=2))
    assert G.training and D.training and all(p.requires_grad for p in G.parameters())
    assert all(t.equal(before[name]) for name, t in G.state_dict().items())
    assert torch.get_rng_state().equal(state)


def test_noise_mode_truncation_and_labels_matter(nets):
    base = Settings(samples=2)
    reference = estimate(*nets, base).values
    for other in (Settings(samples=2, noise_mode="const"), Settings(samples=2, seed=1)):
        assert distance(estimate(*nets, other).values, reference) > 1e-3
    fixed = estimate(*nets, base, labels=torch.tensor([[0.0, 0.0, 1.0]]))
    unused = fixed.values["G.mapping.embed.weight"]
    assert unused[:, :2].eq(0).all() and unused[:, 2].gt(0).any()
    silent = estimate(*nets, Settings(samples=2, noise_mode="none"))
    assert silent.values["G.synthesis.b4.conv1.noise_strength"] == 0


@pytest.mark.parametrize("shape", [[3], [2, 4], [0, 3]])
def test_labels_that_do_not_fit_are_refused(nets, tmp_path, shape):
    with pytest.raises(ValueError, match=r"labels must be \[M, 3\] for this network, got \["):
        estimate(*nets, Settings(samples=1), labels=torch.ones(shape))


def test_truncation_reaches_the_network(nets):
    nets[0].mapping.w_avg.fill_(0.5)
    whole, truncated = (estimate(*nets, Settings(samples=2, psi=psi)).values for psi in (1.0, 0.5))
    assert distance(truncated, whole) > 1e-3


def test_layers_are_means_over_tensors(nets):
    fine = estimate(*nets, Settings(samples=3))
    coarse = estimate(*nets, Settings(samples=3, granularity="layer"))
    assert coarse.meta["standard_error"] == fine.meta["standard_error"]
    for name, value in fine.values.items():
        assert coarse.values[name].shape == ()
        assert coarse.values[name].item() == pytest.approx(value.mean().item(), rel=1e-5)


def test_sums_are_of_squares_per_sample_by_hand():
    sums = Sums([1, 2], torch.device("cpu"))
    sums.add([torch.tensor([[1.0], [-3.0]]), torch.tensor([[2.0, 0.0], [0.0, 4.0]])])
    assert [part.tolist() for part in sums.mean()] == [[5.0], [2.0, 8.0]]
    # Means over the layers are 1, 9 and 2, 8: sample variances 32 and 18, over n = 2.
    assert sums.standard_error() == [4.0, 3.0]


def test_an_interrupted_estimate_resumes_bit_for_bit(tmp_path, monkeypatch):
    partial, settings = tmp_path / "partial.npz", Settings(samples=300)
    whole = estimate(Linear(0.4), Logistic(), settings)
    monkeypatch.setattr(fisher, "SAVE_EVERY_SEC", -1)
    gradients, seen = Estimator.gradients, []

    def interrupted(self, indices, **options):
        seen.extend(indices)
        if 200 in indices:
            raise KeyboardInterrupt
        return gradients(self, indices, **options)

    monkeypatch.setattr(Estimator, "gradients", interrupted)
    with pytest.raises(KeyboardInterrupt):
        estimate(Linear(0.4), Logistic(), settings, partial=partial)
    seen.clear()

    def recorded(self, indices, **options):
        seen.extend(indices)
        return gradients(self, indices, **options)

    monkeypatch.setattr(Estimator, "gradients", recorded)
    again = estimate(Linear(0.4), Logistic(), settings, partial=partial)
    assert min(seen[2:]) == 192 and again.values["G.weight"].equal(whole.values["G.weight"])
    assert again.meta == whole.meta
    other = estimate(Linear(0.4), Logistic(), Settings(samples=300, seed=1), partial=partial)
    assert other.values["G.weight"].ne(whole.values["G.weight"]).all()


def _on_a_rank(place, settings):
    torch.set_num_threads(1)
    distributed.init("cpu")
    found = estimate(Linear(0.4), Logistic(), settings, batch=7)
    if distributed.rank() == 0:
        fisher_file.save(place / "two.npz", found)
    distributed.shutdown()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    settings = Settings(samples=150)
    distributed.spawn(_on_a_rank, (tmp_path, settings), 2)
    two, one = fisher_file.load(tmp_path / "two.npz"), estimate(Linear(0.4), Logistic(), settings)
    assert torch.allclose(two.values["G.weight"], one.values["G.weight"], rtol=1e-6)
    errors = [found.meta.pop("standard_error")["G.weight"] for found in (one, two)]
    assert errors[0] == pytest.approx(errors[1]) and one.meta == two.meta


@pytest.fixture
def file(tmp_path):
    """Return a Fisher file of the linear generator."""
    path = tmp_path / "F.npz"
    fisher_file.save(path, estimate(Linear(), Logistic(), Settings(samples=5), source="ab" * 32))
    return path


def test_file_round_trip(file):
    found = fisher_file.load(file)
    expected = estimate(Linear(), Logistic(), Settings(samples=5), source="ab" * 32)
    assert found.values["G.weight"].equal(expected.values["G.weight"])
    assert found.meta == expected.meta
    assert found.meta["samples"] == 5 and found.meta["likelihood"] == "log sigmoid D(G(z))"
    assert [p.name for p in file.parent.iterdir()] == ["F.npz"]


def test_file_of_another_network_is_refused(file):
    network = file.with_name("network.pkl")
    network.write_bytes(b"")
    with pytest.raises(ValueError, match=r"F\.npz: of another network.*abababababab.*e3b0c44298fc"):
        fisher_file.load(file, network)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_file_is_refused(file, share):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"F\.npz: not a Fisher file, or damaged"):
        fisher_file.load(file)


def altered(file, **changes):
    with np.load(file) as content:
        arrays = dict(content) | changes
    np.savez(file, **arrays)


def test_altered_numbers_are_refused(file):
    value = fisher_file.load(file).values["G.weight"].numpy()
    value[0, 0] *= 1.001
    altered(file, **{"G.weight": value})
    with pytest.raises(ValueError, match=r"F\.npz: its numbers were altered"):
        fisher_file.load(file)


def test_altered_stamp_is_refused(file):
    with np.load(file) as content:
        meta = json.loads(str(content["meta"]))
    altered(file, meta=np.array(json.dumps(meta | {"samples": 10**6})))
    with pytest.raises(ValueError, match="altered"):
        fisher_file.load(file)
    altered(file, meta=np.array("3"))  # JSON, but of somebody else
    with pytest.raises(ValueError, match="not a Fisher file"):
        fisher_file.load(file)


def test_objects_are_never_unpickled(file):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("executed",)

    altered(file, **{"G.weight": np.array([Trap()], dtype=object)})
    with pytest.raises(ValueError, match="not a Fisher file"):
        fisher_file.load(file)


def test_missing_file_and_unfinished_estimate_are_refused(file):
    with pytest.raises(ValueError, match="no such Fisher file"):
        fisher_file.load(file.with_name("other.npz"))
    tensor_file.write(file, {"squares": torch.zeros(2)}, {"likelihood": "log sigmoid D(G(z))"})
    with pytest.raises(ValueError, match="unfinished"):
        fisher_file.load(file)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_negative_or_infinite_information_is_refused(value):
    with pytest.raises(ValueError, match=r"G\.x is negative or not finite"):
        Fisher({"G.x": torch.tensor([0.0, value])})


def test_command(nets, tmp_path):
    G, D = nets
    path = tmp_path / "source.pkl"
    pickles.save(path, G=G, D=D, G_ema=G)
    arguments = [str(path), "--samples=3", "--noise-mode=const", "--discriminator"]
    done = CliRunner().invoke(command.main, arguments)
    assert done.exit_code == 0, done.output
    written = tmp_path / "source.fisher.npz"
    assert done.stdout.splitlines()[-1] == str(written)
    found = fisher_file.load(written, path)
    expected = estimate(G, D, Settings(samples=3, noise_mode="const", discriminator=True))
    assert distance(found.values, expected.values) < 1e-6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source.fisher.npz", "source.pkl"]


def test_a_missing_folder_does_not_cost_the_estimate(file):
    path = file.parent / "new" / "folder" / "F.npz"
    fisher_file.save(path, fisher_file.load(file))
    assert fisher_file.load(path).meta["samples"] == 5


def test_command_says_what_is_wrong(tmp_path):
    for arguments, words in (
        (["nowhere.pkl"], "nowhere.pkl: no such file"),
        ([str(tmp_path)], "a folder without network-snapshot-*.pkl"),
        (["nowhere.pkl", "--samples=0"], "'--samples': 0 is not in the range x>=1"),
        (["nowhere.pkl", f"--out={tmp_path}"], f"'{tmp_path}' is a directory"),
    ):
        done = CliRunner().invoke(command.main, arguments)
        assert done.exit_code == 2 and words in done.output
