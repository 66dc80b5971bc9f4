"""EWC: the penalty by hand, what is held, and where F comes from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stylegan2_fewshot import distributed, files, fisher, stats
from stylegan2_fewshot.fisher import file as fisher_file
from stylegan2_fewshot.fisher.file import Fisher
from stylegan2_fewshot.methods.ewc import EWC, consolidation
from stylegan2_fewshot.plugin import Plugins, Run, Step

LOGITS = torch.tensor([[0.0], [2.0]])


class Net(torch.nn.Module):
    """A network with a matrix, a scalar and a vector, of values that are easy to reckon with."""

    z_dim, c_dim = 2, 0

    def __init__(self):
        super().__init__()
        self.mapping = torch.nn.Linear(2, 2, bias=False)
        self.gain = torch.nn.Parameter(torch.tensor(1.0))
        self.shift = torch.nn.Parameter(torch.tensor([0.5, -0.5]))
        self.mapping.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    def forward(self, x, c, **options):
        return self.mapping(x) * self.gain + self.shift


class Judge(Net):
    def forward(self, x, c, **options):
        return super().forward(x, c).sum(1, keepdim=True)


FISHER = {
    "mapping.weight": torch.tensor([[1.0, 0.0], [2.0, 4.0]]),
    "gain": torch.tensor(8.0),
    "shift": torch.tensor([3.0, 0.0]),
}


@pytest.fixture(autouse=True)
def no_reports_are_left():
    yield
    stats.collect()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.pkl"
    path.write_bytes(b"stands for a network pickle")
    return path


def write(source, values, name="F.npz", **changes):
    """Write a Fisher file for `source` and return its path."""
    meta = {"likelihood": fisher_file.LIKELIHOOD, "standard_error": {}, "network": "G"}
    meta |= {"source_sha256": files.sha256_of(source), **changes}
    fisher_file.save(source.with_name(name), Fisher(dict(values), meta))
    return str(source.with_name(name))


def named(values, net="G"):
    return {f"{net}.{name}": value for name, value in values.items()}


@pytest.fixture
def file(source):
    return write(source, named(FISHER))


def make(source, net=None, **options):
    """Return an EWC that is set up, and the generator that it holds."""
    plugin, net = EWC(**{"lambda_": 10.0, **options}), net or Net()
    plugin.setup(Run(net, Judge(), resumed=str(source)))
    return plugin, net


def move(net):
    """Change every parameter by its own amount."""
    with torch.no_grad():
        net.mapping.weight += torch.tensor([[1.0, 5.0], [-1.0, 0.5]])
        net.gain += 0.25
        net.shift += torch.tensor([2.0, 7.0])


BY_HAND = {"mapping.weight": 1 + 2 + 1, "gain": 0.5, "shift": 12}  # sums of F (theta - theta_S)^2


def penalty(plugin, phase="Gmain"):
    return plugin.penalty(Step(phase, logits=LOGITS))


def test_penalty_by_hand(source, file):
    plugin, net = make(source, fisher=file)
    assert penalty(plugin) == 0
    move(net)
    assert penalty(plugin).item() == 10 * sum(BY_HAND.values())


def test_gradient(source, file):
    plugin, net = make(source, fisher=file)
    move(net)
    penalty(plugin).backward()
    assert net.mapping.weight.grad.tolist() == [[20, 0], [-40, 40]]  # 2 lambda F (theta - theta_S)
    assert net.gain.grad == 40 and net.shift.grad.tolist() == [120, 0]
    values = [torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(
        lambda params, anchor: consolidation(params, anchor, torch.ones(5)).sum(), values
    )


def test_only_in_its_phases_and_only_for_its_networks(source, file):
    plugin, net = make(source, fisher=file)
    move(net)
    for phase in ("Gpl", "Dfake", "Dreal", "Dr1"):
        assert penalty(plugin, phase) is None


def test_weight_zero_needs_nothing_and_does_nothing():
    plugin = EWC()
    plugin.setup(Run(Net(), Judge()))
    assert penalty(plugin) is None and plugin.state_dict() == {}


def test_discriminator_too(source):
    file = write(source, named(FISHER) | named(FISHER, "D"))
    plugin, G, D = EWC(lambda_=1.0, fisher=file, network="GD"), Net(), Judge()
    plugin.setup(Run(G, D, resumed=str(source)))
    move(D)
    assert penalty(plugin) == 0
    assert penalty(plugin, "Dfake") == sum(BY_HAND.values())


def test_normalized_information_has_mean_one(source, file):
    plugin, net = make(source, fisher=file, normalize=True)
    move(net)
    mean = 18 / 7
    assert plugin.fisher_G.mean().item() == pytest.approx(1)
    assert penalty(plugin).item() == pytest.approx(10 * sum(BY_HAND.values()) / mean)


class WithKinds(Net):
    """A weight, a bias and a noise strength of very different Fisher information."""

    def __init__(self):
        super().__init__()
        del self.gain, self.shift
        self.mapping.bias = torch.nn.Parameter(torch.zeros(2))
        self.noise_strength = torch.nn.Parameter(torch.tensor(0.0))


KINDS = {
    "mapping.weight": torch.tensor([[1e-6, 3e-6], [0.0, 4e-6]]),
    "mapping.bias": torch.tensor([10.0, 30.0]),
    "noise_strength": torch.tensor(500.0),
}


def moved_by_one(source, **options):
    net = WithKinds()
    plugin, _ = make(source, net, fisher=write(source, named(KINDS)), lambda_=1.0, **options)
    with torch.no_grad():
        for param in net.parameters():
            param += 1
    penalty(plugin).backward()
    ratios = {name: moments.mean for name, moments in stats.collect().items()}
    total = ratios.pop("EWC/ratio")
    del ratios["EWC/penalty"], ratios["EWC/lambda"]
    return {name.rpartition("/")[2]: value / total for name, value in ratios.items()}


def test_the_ratio_says_what_kind_of_parameter_it_comes_from(source):
    assert moved_by_one(source) == {
        "weights": pytest.approx(8e-6 / 540, rel=1e-3),
        "biases": pytest.approx(40 / 540),
        "noise": pytest.approx(500 / 540),
    }


def test_normalized_information_has_mean_one_in_each_kind(source):
    shares = moved_by_one(source, normalize=True)
    assert {kind: share * 7 for kind, share in shares.items()} == {
        "weights": pytest.approx(4),
        "biases": pytest.approx(2),
        "noise": pytest.approx(1),
    }


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ("mapping.*", ["gain", "shift"]),
        ("G.gain,sh*t", ["mapping.weight"]),
        ("D.*", ["mapping.weight", "gain", "shift"]),
    ],
)
def test_skipped_parameters_are_free(source, file, skip, left):
    plugin, net = make(source, fisher=file, skip=skip)
    move(net)
    assert penalty(plugin).item() == 10 * sum(BY_HAND[name] for name in left)


def test_a_mistyped_pattern_is_refused(source, file):
    message = r"--ewc-skip: 'maping\.\*' is the name of no parameter of G or D; there are G\."
    with pytest.raises(ValueError, match=message):
        make(source, fisher=file, skip="gain,maping.*")


def test_one_number_per_layer(source):
    values = {name: value.mean() for name, value in named(FISHER).items()}
    plugin, net = make(source, fisher=write(source, values))
    move(net)
    by_hand = 1.75 * (1 + 25 + 1 + 0.25) + 8 * 0.25**2 + 1.5 * (4 + 49)
    assert penalty(plugin).item() == pytest.approx(10 * by_hand)


def test_parameters_of_other_plugins_carry_no_penalty(source, file, capsys):
    net = Net()
    net.bank = torch.nn.Parameter(torch.ones(3))
    net.shift = torch.nn.Parameter(torch.ones(2, 2))
    plugin, _ = make(source, net, fisher=file)
    assert "shift, bank" in capsys.readouterr().out
    with torch.no_grad():
        net.bank += 1
        net.shift += 1
        net.gain += 0.25
    assert penalty(plugin).item() == 10 * BY_HAND["gain"]


def test_reports(source, file):
    plugin, net = make(source, fisher=file, per_layer=True)
    move(net)
    penalty(plugin)
    found = {name: moments.mean for name, moments in stats.collect().items()}
    adversarial = F.softplus(-LOGITS).mean().item()
    assert found["EWC/penalty"] == sum(BY_HAND.values())
    assert found["EWC/ratio"] == pytest.approx(10 * sum(BY_HAND.values()) / adversarial)
    for name, value in BY_HAND.items():
        assert found[f"EWC/ratio/{name}"] == pytest.approx(10 * value / adversarial)


def test_order_of_plugins_does_not_matter(source, file):
    net = Net()
    parts = {"ewc": make(source, net, fisher=file)[0]}
    parts["other"] = make(source, net, fisher=file, lambda_=0.3, skip="mapping.*")[0]
    move(net)
    step = Step("Gmain", logits=LOGITS)
    totals = [
        Plugins({n: parts[n] for n in order}).penalty(step) for order in (parts, [*parts][::-1])
    ]
    assert totals[0] == totals[1] and totals[0].item() == pytest.approx(165 + 0.3 * 12.5)


def test_state_goes_on_where_it_was(source, file, tmp_path):
    plugin, net = make(source, fisher=file)
    torch.save(plugin.state_dict(), tmp_path / "state.pt")
    move(net)
    again, moved = make(source, fisher=file)
    move(moved)
    again.anchor_G.zero_()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert penalty(again) == penalty(plugin) == 10 * sum(BY_HAND.values())


def test_needs_a_source_network():
    with pytest.raises(ValueError, match="--ewc-lambda=10 needs --resume"):
        EWC(lambda_=10.0).setup(Run(Net(), Judge()))


def test_file_of_another_source_is_refused(source, file):
    source.write_bytes(b"another network")
    with pytest.raises(ValueError, match="of another network"):
        make(source, fisher=file)


def test_nothing_left_to_hold_is_refused(source, file):
    with pytest.raises(ValueError, match="no parameter of G to hold; --ewc-skip names them all"):
        make(source, fisher=file, skip="*")
    with pytest.raises(ValueError, match="--ewc-network=GD: no parameter of D to hold; the Fisher"):
        make(source, fisher=file, network="GD")
    zero = write(source, {"G.gain": torch.tensor(0.0)}, "zero.npz")
    with pytest.raises(ValueError, match="--ewc-normalize: the Fisher information is 0"):
        make(source, fisher=zero, normalize=True)


@pytest.mark.parametrize("wrong", [{"lambda_": -1.0}, {"lambda_": float("nan")}, {"samples": 0}])
def test_refuses_what_makes_no_sense(wrong):
    name = next(iter(wrong)).strip("_")
    with pytest.raises(ValueError, match=f"--ewc-{name}"):
        EWC(**wrong)


def test_estimates_once_and_keeps_it_beside_the_source(source, monkeypatch):
    plugin, _ = make(source, samples=4)
    kept = [path for path in source.parent.iterdir() if path != source]
    assert len(kept) == 1 and kept[0].match("source.fisher-*.npz")
    expected = fisher.estimate(Net(), Judge(), fisher.Settings(samples=4))
    assert plugin.fisher_G.equal(torch.cat([v.flatten() for v in expected.values.values()]))
    assert fisher_file.load(kept[0]).meta["source_sha256"] == files.sha256_of(source)

    monkeypatch.setattr(fisher, "estimate", None)
    again, _ = make(source, samples=4)
    assert again.fisher_G.equal(plugin.fisher_G)
    with pytest.raises(TypeError):  # other settings, another source: estimated anew
        make(source, samples=5)
    source.write_bytes(b"another network")
    with pytest.raises(TypeError):
        make(source, samples=4)


def test_a_rank_that_does_not_see_the_first_one_s_disk_goes_on(source, monkeypatch):
    expected = fisher.estimate(Net(), Judge(), fisher.Settings(samples=4))
    monkeypatch.setattr(fisher, "estimate", lambda *_, **__: expected)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    plugin, _ = make(source, samples=4)
    assert plugin.fisher_G.equal(torch.cat([v.flatten() for v in expected.values.values()]))
    assert list(source.parent.iterdir()) == [source]


def test_keeps_it_in_the_cache_where_the_source_is_read_only(source, tmp_path, monkeypatch):
    monkeypatch.setattr(fisher_file.os, "access", lambda path, mode: False)
    monkeypatch.setenv("STYLEGAN2_FEWSHOT_CACHE", str(tmp_path / "cache"))
    make(source, samples=2)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]
