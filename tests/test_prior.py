"""The data instance prior: features, warm start, training, sampling, and what is refused."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from PIL import Image

import generate
import train
from metrics import Trust, registry
from metrics import __main__ as metrics_command
from stylegan2_fewshot import Run, Step, files, fisher
from stylegan2_fewshot.fisher import file as fisher_file
from stylegan2_fewshot.methods.ewc import EWC
from stylegan2_fewshot.methods.prior import Prior, clusters, instances
from stylegan2_fewshot.methods.prior.drawing import between, pool
from stylegan2_fewshot.methods.prior.instances import Instances, companion
from stylegan2_fewshot.networks import labels_beside
from stylegan2_fewshot.options import describe
from tools import analysis
from tools import features as features_command
from training import conditions, pickles, training_loop
from training.dataset import ImageDataset
from training.widening import with_labels

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
SOURCES = ["tests/golden/d_orig.pkl", "examples/toon-heads-32.pkl"]
DIM = 6


class Backbone(torch.nn.Module):
    """Means of a few regions: a network that sees which image is which, and mirroring."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, [1, 2]).flatten(1)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Return the path of a TorchScript backbone of six numbers."""
    path = tmp_path_factory.mktemp("backbone") / "regions.pt"
    torch.jit.script(Backbone()).save(path)
    return str(path)


def run_features(*arguments):
    return CliRunner().invoke(features_command.main, [*map(str, arguments)])


@pytest.fixture
def features(tiny_data, backbone, tmp_path):
    out = tmp_path / "features.npz"
    named = (f"--backbone={backbone}", "--trust-backbone")
    result = run_features(tiny_data, *named, f"--out={out}")
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def source(tmp_path):
    """Return an unconditional network pickle that fits the tiny options."""
    return tiny.save(tmp_path / "source.pkl")


# Warm start


@pytest.mark.parametrize("path", SOURCES)
@pytest.mark.parametrize("c_dim", [1, 512])
def test_widened_networks_are_the_same_functions(path, c_dim):
    nets = pickles.load(ROOT / path)
    z, c = torch.randn(4, nets.G.z_dim), torch.randn(4, c_dim)
    for G in (nets.G, nets.G_ema):
        exact = dict(noise_mode="const", force_fp32=True)
        before, after = G(z, None, **exact), with_labels(G, c_dim)(z, c, **exact)
        assert (after - before).abs().max() <= 1e-5 * max(1, before.abs().max())
    logits = nets.D(before, None, force_fp32=True)
    ours = with_labels(nets.D, c_dim)(before, c, force_fp32=True)
    torch.testing.assert_close(ours, logits, atol=1e-5, rtol=0)


def test_widened_networks_can_learn_of_the_label(source):
    nets = pickles.load(source)
    G, D = (with_labels(net, 4).requires_grad_(True) for net in (nets.G, nets.D))
    c = torch.eye(4)
    D(G(torch.randn(4, 8), c, noise_mode="const"), c).square().sum().backward()
    for fresh in (G.mapping.embed.weight.grad, D.b4.out.weight.grad[1:]):
        assert fresh.abs().sum(1).min() > 0
        assert not torch.allclose(fresh[0], fresh[1])  # no symmetry that would stay


def test_g_and_its_average_get_the_same_layers_and_no_random_number_is_used_up(source):
    nets = pickles.load(source)
    state = torch.random.get_rng_state()
    weights = [with_labels(net, 3).mapping.embed.weight for net in (nets.G, nets.G_ema)]
    assert torch.equal(*weights)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_ewc_holds_what_the_source_has_and_leaves_the_rest_free(source, tmp_path):
    nets = pickles.load(source)
    named = dict(nets.G.named_parameters())
    values = {f"G.{name}": torch.rand(p.shape) for name, p in named.items()}
    meta = {"likelihood": fisher_file.LIKELIHOOD, "standard_error": {}, "network": "G"}
    meta["source_sha256"] = files.sha256_of(source)
    fisher_file.save(tmp_path / "F.npz", fisher_file.Fisher(values, meta))
    penalties = []
    for G, before in ((nets.G, None), (with_labels(nets.G, 3), (nets.G, nets.D))):
        plugin = EWC(lambda_=1.0, fisher=str(tmp_path / "F.npz"))
        plugin.setup(Run(G, nets.D, resumed=str(source), source=before))
        weight = G.mapping.fc0.weight.data
        weight[:, :8] += 0.5 / G.mapping.fc0.weight_gain  # the same change of the function
        G.synthesis.b8.conv0.weight.data += 0.1
        penalties.append(plugin.penalty(Step("Gmain", logits=torch.zeros(1, 1))))
    torch.testing.assert_close(*penalties)
    G.mapping.fc0.weight.data[:, 8:] += 1
    G.mapping.embed.weight.data += 1
    assert plugin.penalty(Step("Gmain", logits=torch.zeros(1, 1))) == penalties[1]


def test_ewc_of_a_source_with_a_prior_draws_its_conditions(trained, tmp_path):
    nets = pickles.load(trained)
    kept = instances.load(companion(trained)).vectors
    torch.testing.assert_close(labels_beside(trained), kept)
    EWC(lambda_=1.0, samples=2).setup(Run(nets.G, nets.D, resumed=str(trained)))
    (file,) = trained.parent.glob("network-snapshot-000000-016.fisher-*.npz")
    expected = fisher.estimate(nets.G, nets.D, fisher.Settings(samples=2), labels=kept).values
    torch.testing.assert_close(fisher_file.load(file).values, expected)
    ordinary = fisher.estimate(nets.G, nets.D, fisher.Settings(samples=2)).values
    name = "G.synthesis.b8.conv0.weight"
    assert not torch.equal(ordinary[name], expected[name])


# Features


def test_analysis_of_a_source_with_a_prior_draws_its_conditions(trained, tmp_path, monkeypatch):
    drawn, estimate = [], fisher.estimate

    def spy(*arguments, labels=None, **options):
        drawn.append(labels)
        return estimate(*arguments, labels=labels, **options)

    monkeypatch.setattr(analysis, "estimate", spy)
    arguments = [str(trained), str(trained), "--samples=1", f"--out={tmp_path}"]
    assert CliRunner().invoke(analysis.main, arguments).exit_code == 0
    torch.testing.assert_close(drawn, [instances.load(companion(trained)).vectors])


def test_features_are_of_unit_length_and_of_both_sides(features, tiny_data, backbone):
    found = instances.load(features)
    assert found.vectors.shape == (2, 8, DIM)
    torch.testing.assert_close(found.vectors.norm(dim=-1), torch.ones(2, 8))
    mirrored = found.vectors[1].view(8, 3, 2).flip(2).flatten(1)
    torch.testing.assert_close(found.vectors[0], mirrored, atol=1e-4, rtol=0)
    assert list(found.meta["files"]) == [f"{number}.png" for number in range(8)]
    assert found.meta["backbone_sha256"] == files.sha256_of(Path(backbone))


def test_conditions_are_what_tells_features_apart():
    features = instances.unit(torch.randn(2, 20, 30) + 2)
    conditions = Instances(features, {}).as_conditions()
    shared = [(v[0] @ v[0].T).mean() for v in (features, conditions.vectors)]
    assert shared[0] > 0.7 and shared[1].abs() < 0.1
    torch.testing.assert_close(conditions.vectors.norm(dim=-1), torch.ones(2, 20))
    torch.testing.assert_close(conditions.condition_of(3 * features[0]), conditions.vectors[0])


def test_labels_are_the_conditions_of_each_image_in_use(features, tiny_data):
    dataset = ImageDataset(tiny_data, max_size=3, xflip=True, seed=1)
    used = sorted({dataset.locate(index)[0] for index in range(6)})
    vectors = instances.load(features).as_conditions(used).vectors
    labelled = Prior(prior=str(features)).condition(dataset)
    assert labelled.label_dim == DIM and dataset.label_dim == 0 and len(labelled) == 6
    for index in range(6):
        raw_idx, flipped = labelled.locate(index)
        expected = vectors[int(flipped), raw_idx].numpy()
        np.testing.assert_array_equal(labelled[index][1], expected)


@pytest.mark.parametrize("xflip", [False, True])
def test_the_center_is_that_of_the_images_in_use(features, tiny_data, xflip):
    dataset = ImageDataset(tiny_data, max_size=3, xflip=xflip, seed=1)
    prior = Prior(prior=str(features))
    prior.condition(dataset)
    found = instances.load(features).vectors
    used = [found[int(side), row] for row, side in map(dataset.locate, range(len(dataset)))]
    torch.testing.assert_close(prior._conditions.center, torch.stack(used).mean(0))


def test_without_centering_labels_are_the_features(features, tiny_data):
    dataset = ImageDataset(tiny_data)
    labelled = Prior(prior=str(features), center=False).condition(dataset)
    found = instances.load(features).vectors[0]
    torch.testing.assert_close(torch.from_numpy(labelled.get_label(3)), found[3])


def test_the_control_gives_every_image_another_ones_condition(features, tiny_data):
    dataset = ImageDataset(tiny_data)
    one, other = (
        np.stack([labelled.get_label(index) for index in range(8)])
        for labelled in (
            Prior(prior=str(features), permute=permute).condition(dataset)
            for permute in (False, True)
        )
    )
    distances = np.abs(one[:, None] - other[None]).max(2)
    assert (distances.argmin(0) != np.arange(8)).all()  # nobody has its own
    assert sorted(distances.argmin(0)) == list(range(8)) and distances.min(0).max() == 0


def test_one_image_has_nothing_to_be_told_from(features, tiny_data):
    one = ImageDataset(tiny_data, max_size=1, xflip=True)
    with pytest.raises(ValueError, match="one image has nothing to be told from; add images"):
        Prior(prior=str(features)).condition(one)
    assert Prior(prior=str(features), center=False).condition(one).label_dim == DIM


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(tiny_data, tmp_path, number):
    vectors = instances.unit(torch.randn(2, 8, DIM))
    vectors[1, 3, 0] = number
    names = {name: instances.digest(data) for name, data in ImageDataset(tiny_data).files()}
    meta = {"backbone": "vgg16", "backbone_sha256": "0" * 64, "resize": "", "files": names}
    path = tmp_path / "bad.npz"
    instances.save(path, Instances(vectors, meta))
    arguments = [f"--data={tiny_data}", f"--outdir={tmp_path}/runs", "--metrics=none"]
    result = CliRunner().invoke(train.main, [*arguments, f"--prior={path}"])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output
    assert "bad.npz: not a file of features (its numbers are not finite" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_from_scratch_d_has_an_unconditional_term(options):
    plugins = {"prior": options["plugins"]["prior"]}
    scratch = {**options, "resume": None, "resume_from": None, "plugins": plugins}
    D = construct(scratch)[0].D
    mapped = D.mapping(None, instances.unit(torch.randn(5, DIM)))
    unconditional = mapped[:, 0] / math.sqrt(D.b4.cmap_dim)
    torch.testing.assert_close(unconditional, torch.ones(5))
    assert mapped[:, 1:].std(0).min() > 0


# Training


@pytest.fixture
def options(tiny_options, features, source):
    plugins = {"apa": {"target": -1.0, "kimg": 0.1}, "ewc": {"lambda_": 1.0, "samples": 2}}
    plugins |= {"prior": {"prior": str(features)}}
    return {**tiny_options, "plugins": plugins, "resume": str(source), "total_kimg": 0.016}


@pytest.fixture
def trained(options, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    training_loop.train(options, folder, CPU)
    return folder / "network-snapshot-000000-016.pkl"


def test_training_gives_a_conditional_network_and_its_conditions(trained, features, source):
    G = pickles.load(trained).G_ema
    assert G.c_dim == DIM and not torch.equal(G.mapping.fc0.weight[:, 8:], torch.zeros(8, 8))
    kept = instances.load(companion(trained))
    assert kept.vectors.shape == (16, DIM) and "files" not in kept.meta
    expected = instances.load(features).as_conditions()
    assert torch.equal(kept.center, expected.center)
    assert set(map(tuple, kept.vectors.tolist())) == set(
        map(tuple, expected.vectors.flatten(0, 1).tolist())
    )


def test_resumes_bit_for_bit(options, trained, tmp_path):
    folder = tmp_path / "halves"
    folder.mkdir()
    training_loop.train({**options, "total_kimg": 0.008}, folder, CPU)
    training_loop.train(options, folder, CPU)
    states = [pickles.load(path).G.state_dict() for path in (trained, folder / trained.name)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


LAUNCH = """
import json, sys
from pathlib import Path
from training import launch

if __name__ == "__main__":
    launch.launch(json.loads(sys.argv[1]), outdir=Path(sys.argv[2]), fresh=True, gpus=2)
"""


@pytest.mark.slow
def test_trains_on_two_ranks(options, tmp_path):
    script, runs = tmp_path / "launch.py", tmp_path / "runs"
    script.write_text(LAUNCH)
    options["plugins"] |= {"bank": {"size": 3}, "lecam": {"lambda_": 1.0}}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, json.dumps(options), runs]
    subprocess.run(command, env=environment, check=True, timeout=240)
    (network,) = runs.glob("*/network-snapshot-000000-016.pkl")
    kept = instances.load(companion(network)).vectors
    assert pickles.load(network).G_ema.c_dim == DIM and kept.shape == (16, DIM)


def construct(options):
    return training_loop.construct(options, ImageDataset(**options["dataset"]), CPU)


def test_mistakes_of_training_are_one_line_each(options, trained, features, tiny_data, tmp_path):
    with pytest.raises(ValueError, match="drop --cond"):
        labels = {"labels": [[f"{number}.png", number] for number in range(8)]}
        (tiny_data / "dataset.json").write_text(json.dumps(labels))
        construct({**options, "dataset": {**options["dataset"], "use_labels": True}})
    other = instances.load(features)
    wider = Instances(torch.cat([other.vectors] * 2, 2), other.meta)
    instances.save(tmp_path / "wider.npz", wider)
    resumed = {**options, "resume": str(trained), "plugins": {}}
    resumed["plugins"] = {"prior": {"prior": str(tmp_path / "wider.npz")}}
    with pytest.raises(ValueError, match=r"has 6 numbers in a label, .* has 12"):
        construct(resumed)
    meta = {**other.meta, "backbone": "vgg16", "backbone_sha256": "0" * 64}
    instances.save(tmp_path / "vgg16.npz", Instances(other.vectors, meta))
    resumed["plugins"] = {"prior": {"prior": str(tmp_path / "vgg16.npz")}}
    with pytest.raises(ValueError, match=r"features are of vgg16, but .*000000-016\.pkl .*regions"):
        construct(resumed)
    Image.new("RGB", (16, 16)).save(tiny_data / "3.png")
    with pytest.raises(ValueError, match=r"--prior: holds no features of 3\.png as it is in"):
        construct(options)


def test_files_that_are_none_are_refused(trained, tmp_path):
    for content in (None, b"junk"):
        if content:
            (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.npz: .*python -m tools\.features"):
            Prior(prior=str(tmp_path / "x.npz")).condition(None)
    with pytest.raises(ValueError, match="give those of a data set"):
        Prior(prior=str(companion(trained))).condition(None)


def test_a_loop_that_does_not_take_the_labels_is_refused(features, tiny_data):
    plugin = Prior(prior=str(features))
    with pytest.raises(ValueError, match="does not hand its labels"):
        plugin.setup(Run(torch.nn.Identity(), torch.nn.Identity(), ImageDataset(tiny_data)))


def test_run_directories_are_named_without_the_path():
    assert describe({"prior": "some/where.npz", "ewc_lambda": 3.0}) == ["prior", "ewc"]


# Sampling


@pytest.mark.parametrize(
    ("sampling", "number"), [("train", 20), ("mixup", 1000), ("kmeans", 10), ("gmm", 1000)]
)
def test_sampled_conditions(sampling, number):
    centres = instances.unit(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)))
    near = centres.repeat_interleave(10, 0) + 0.01 * torch.randn(20, 5)
    kept = instances.Instances(instances.unit(near), {})
    found = pool(kept, sampling)
    assert found.shape == (number, 5) and found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(number))
    assert torch.equal(found, pool(kept, sampling))
    close = (found @ centres.T).max(1).values > 0.99
    assert close.float().mean() > (0.4 if sampling == "mixup" else 0.99)
    assert (not close.all()) == (sampling == "mixup")


def test_clusters_by_hand():
    points = torch.tensor([[0.0, 0], [0, 2], [10, 0], [10, 2], [10, 4]]).double()
    rng = torch.Generator().manual_seed(0)
    found = clusters.kmeans(points, 2, rng)
    assert sorted(found.tolist()) == [[0, 1], [10, 2]]
    weights, means, variances = clusters.mixture(points, 2, rng)
    order = means[:, 0].argsort()
    torch.testing.assert_close(weights[order], torch.tensor([0.4, 0.6]).double())
    torch.testing.assert_close(means[order], torch.tensor([[0.0, 1], [10, 2]]).double())
    want = torch.tensor([[clusters.FLOOR, 1], [clusters.FLOOR, 8 / 3]]).double()
    torch.testing.assert_close(variances[order], want)
    alike = clusters.fitted(torch.ones(8, 2))  # fewer different points than clusters
    assert torch.equal(alike.centres, torch.ones(4, 2)) and alike.means.isfinite().all()


def test_the_mixture_is_as_likely_as_that_of_sklearn():
    mixtures = pytest.importorskip("sklearn.mixture")
    rng = torch.Generator().manual_seed(1)
    points = torch.randn(300, 3, generator=rng).double()
    points += torch.tensor([[-4.0, 0, 0], [0, 3, 0], [5, 5, 5]]).repeat(100, 1)
    theirs = mixtures.GaussianMixture(3, covariance_type="diag", n_init=3, random_state=0)
    best = theirs.fit(points.numpy()).score(points.numpy())
    weights, means, variances = clusters.mixture(points, 3, rng)
    parts = torch.distributions.Independent(torch.distributions.Normal(means, variances.sqrt()), 1)
    ours = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), parts)
    assert ours.log_prob(points).mean().item() == pytest.approx(best, abs=1e-3)


def test_clusters_are_of_all_conditions_also_where_few_are_kept(
    tiny_data, features, tmp_path, monkeypatch
):
    monkeypatch.setattr(instances, "MOST_CONDITIONS", 3)
    plugin = Prior(prior=str(features))
    dataset = plugin.condition(ImageDataset(tiny_data, xflip=True))
    plugin.snapshot(tmp_path / "network.pkl")
    kept = instances.load_beside(tmp_path / "network.pkl")
    everything = torch.stack([torch.from_numpy(dataset.get_label(i)) for i in range(16)])
    assert len(kept.vectors) == 3
    for name, value in vars(clusters.fitted(everything)).items():
        assert torch.equal(getattr(kept.clusters, name), value), name
    assert torch.equal(pool(kept, "kmeans"), instances.unit(kept.clusters.centres))
    broken = replace(kept, clusters=replace(kept.clusters, weights=torch.ones(5)))
    instances.save(tmp_path / "broken.npz", broken)
    with pytest.raises(ValueError, match="not a file of features"):
        instances.load(tmp_path / "broken.npz")


def test_a_strip_between_two_conditions():
    one, two = torch.eye(2)
    strip = between(one, two, 3)
    torch.testing.assert_close(strip, torch.tensor([[1, 0], [0.5**0.5] * 2, [0, 1]]))


def run_generate(network, *arguments):
    options = ["--network", network, "--seeds=0-1", "--outdir", network.parent / "out", *arguments]
    return CliRunner().invoke(generate.main, list(map(str, options)))


def test_generate_takes_an_image_s_condition(trained, tiny_data, features, backbone):
    kept, G = instances.load(companion(trained)), pickles.load(trained).G_ema
    own = {"backbone": backbone, "trust": Trust(everything=True)}
    named = (kept.meta["backbone"], kept.meta["backbone_sha256"])
    c = kept.condition_of(conditions.see([str(tiny_data / "3.png")], *named, G, **own))
    expected = instances.load(features).as_conditions().vectors[0, 3]
    torch.testing.assert_close(c[0], expected, atol=1e-4, rtol=0)
    trusted = ("--backbone", backbone, "--trust-backbone")
    result = run_generate(trained, "--prior-image", tiny_data / "3.png", *trusted)
    assert result.exit_code == 0, result.output
    z = torch.from_numpy(np.random.RandomState(1).randn(1, 8)).float()
    expected = pickles.load(trained).G_ema(z, c, noise_mode="const")
    with Image.open(trained.parent / "out" / "seed0001.png") as image:
        ours = np.asarray(image).astype(int)
    theirs = (expected[0] * 127.5 + 128).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs).max() <= 1


def test_generate_samples_and_mixes(trained, tiny_data, backbone):
    mix = f"--prior-mix={tiny_data / '3.png'},{tiny_data / '4.png'}"
    trusted = (f"--backbone={backbone}", "--trust-backbone")
    for how, width in (("--prior-sample=mixup", 16), (mix, 8 * 16)):
        result = run_generate(trained, how, "--grid", *trusted)
        assert result.exit_code == 0, result.output
        with Image.open(trained.parent / "out" / "seed0001.png") as image:
            assert image.size == (width, 16)


def test_mistakes_of_generate_are_one_line_each(trained, source, tiny_data, backbone):
    nowhere = ["--prior-image=nowhere.png", f"--backbone={backbone}", "--trust-backbone"]
    wrong = [
        (trained, [], "give --prior-sample, --prior-image or --prior-mix"),
        (trained, ["--class=1"], "instead of a class"),
        (trained, ["--class=1", "--prior-sample=train"], "give only one of"),
        (trained, ["--prior-mix=a.png"], "name two images"),
        (trained, nowhere, "nowhere.png: cannot be read"),
        (source, ["--prior-sample=train"], "no file .prior.npz beside it"),
    ]
    for network, arguments, expected in wrong:
        result = run_generate(network, *arguments)
        assert result.exit_code == 2 and result.output.count("\n") == 1, result.output
        assert expected in result.output


def test_metrics_of_a_network_with_a_prior(trained, heldout_data, backbone, monkeypatch):
    few = replace(registry.METRICS["nn1k"], num_fakes=20)
    monkeypatch.setitem(registry.METRICS, "nn1k", few)
    nets = pickles.load(trained)
    nets.G_ema.mapping.embed.weight *= 1e3  # as after longer training
    named = dict(training_set_kwargs=nets.training_set_kwargs)
    pickles.save(trained, G=nets.G, D=nets.D, G_ema=nets.G_ema, **named)
    options = [trained, f"--metricdata={heldout_data}", f"--metrics=nn1k@{backbone}"]
    options += ["--trust-backbone"]
    found = []
    for sampling in ("train", "mixup"):
        options = [*options[:4], f"--prior-sample={sampling}", f"--out={trained.parent}/m"]
        result = CliRunner().invoke(metrics_command.main, list(map(str, options)))
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.output.strip().splitlines()[-1])["results"])
    assert found[0] != found[1]
