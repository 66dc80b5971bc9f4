"""Filter banks: routes, what a step moves, files and commands, and company of other methods."""

from __future__ import annotations

import copy
import functools
import pickletools
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from test_pickles import network, snapshot

import generate
from stylegan2_fewshot import Plugins, Run, distributed
from stylegan2_fewshot.loss import StyleGAN2Loss
from stylegan2_fewshot.methods.bank.filters import (
    banks_of,
    candidates,
    install,
    parse_route,
    route_argument,
    routes_of,
    without_banks,
)
from stylegan2_fewshot.plugin import Step
from tools import bank_export, convert
from training import networks, pickles, training_loop
from training.dataset import ImageDataset
from training.training_loop import train

CPU = torch.device("cpu")
WIDTH = dict(channel_base=128, channel_max=8)
LAYERS = ["b4.conv1", "b8.conv0", "b8.conv1"]


def build(seed=0):
    torch.manual_seed(seed)
    return networks.Generator(8, 0, 8, 16, 3, dict(num_layers=2), dict(WIDTH)).requires_grad_(False)


def discriminator():
    return networks.Discriminator(0, 16, 3, **WIDTH, epilogue_kwargs=dict(mbstd_group_size=2))


def banked(size=4, layers=LAYERS, jitter=0.5, seed=0):
    G = build()
    install(G, size=size, layers=layers, jitter=jitter, seed=seed)
    return G


@torch.no_grad()
def images(G, z, **options):
    return G.eval()(z, None, noise_mode="const", **options)


def latents(count, seed=0):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def test_a_route_is_a_function_of_its_latent_alone():
    z = torch.arange(16.0).view(2, 8)
    routes = routes_of(z, size=16, layers=3)
    assert routes.tolist() == [[7, 8, 0], [7, 8, 6]]  # the same on every machine
    assert torch.equal(routes, torch.cat([routes_of(x, size=16, layers=3) for x in z.split(1)]))
    assert torch.equal(routes, routes_of(z.t().contiguous().t(), size=16, layers=3))
    G, before = banked(), torch.random.get_rng_state()
    route_argument(G, z)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_routes_are_uniform_and_layers_independent():
    routes = routes_of(latents(40_000), size=5, layers=3)
    counts = torch.stack([column.bincount(minlength=5) for column in routes.t()])
    assert (counts - 8000).abs().max() < 5 * 80  # five standard deviations
    joint = (routes[:, 0] * 5 + routes[:, 1]).bincount(minlength=25)
    assert (joint - 1600).abs().max() < 5 * 39


def test_without_jitter_images_are_the_sources():
    z, G = latents(9), build()
    many = banked(size=7, jitter=0.0)
    alone = torch.cat([images(many, x) for x in z.split(1)])
    assert torch.equal(alone, torch.cat([images(G, x) for x in z.split(1)]))
    # In float32, rounding depends on the size of a batch, for the source as well.
    torch.testing.assert_close(images(many, z), images(G, z), rtol=1e-6, atol=5e-6)


def test_every_sample_gets_its_own_route():
    z, G = latents(9), banked()
    routes = routes_of(z, size=4, layers=3)
    assert len(routes.unique(dim=0)) > 4
    alone = [
        images(without_banks(G, route), x)
        for x, route in zip(z.split(1), routes.split(1), strict=True)
    ]
    torch.testing.assert_close(images(G, z), torch.cat(alone), rtol=0, atol=1e-5)
    assert (images(G, z) - images(build(), z)).abs().max() > 0.01
    torch.testing.assert_close(images(G, z, route=None), images(without_banks(G, None), z))
    assert torch.equal(images(copy.deepcopy(G), z), images(G, z))


def test_jitter_follows_from_the_seed_and_is_relative_to_the_filter():
    plain = build()
    sets = [banked(size=64, jitter=0.1, seed=seed).synthesis.b8.conv0.bank for seed in (0, 0, 1)]
    assert torch.equal(sets[0][3], sets[1][3]) and not torch.equal(sets[0][3], sets[2][3])
    weight = plain.synthesis.b8.conv0.weight
    added = torch.stack(list(sets[0])) - weight
    assert added.std() / weight.square().mean().sqrt() == pytest.approx(0.1, rel=0.02)


def bank_plugin(G, size=6, **options):
    plugins = Plugins.create({"bank": {"size": size, **options}})
    plugins.setup(Run(G, discriminator(), G_ema=copy.deepcopy(G)))
    return plugins


def run_phase(phase, G, loss, opt, z):
    G.requires_grad_(True)
    opt.zero_grad(set_to_none=True)
    loss.accumulate_gradients(phase, torch.zeros(0), torch.zeros(0), z, torch.zeros(len(z), 0))
    G.requires_grad_(False)
    opt.step()


@pytest.mark.parametrize(("phase", "samples"), [("Gmain", 4), ("Greg", 2)])
def test_a_set_that_no_sample_took_does_not_move(phase, samples):
    G = build().train()
    plugins = bank_plugin(G, size=8, layers=",".join(LAYERS))
    loss = StyleGAN2Loss(CPU, G.mapping, G.synthesis, discriminator(), plugins)
    opt = torch.optim.Adam(G.parameters(), lr=0.01, betas=(0.9, 0.99))  # with much momentum
    rested = 0
    for step in range(8):
        z = latents(4, seed=step)
        before = {name: p.clone() for name, p in G.synthesis.named_parameters()}
        run_phase(phase, G, loss, opt, z)
        taken = routes_of(z[:samples], size=8, layers=3)
        for name, column in zip(LAYERS, taken.t().tolist(), strict=True):
            for number, filters in enumerate(G.synthesis.get_submodule(name).bank):
                moved = not torch.equal(filters, before[f"{name}.bank.{number}"])
                assert moved == (number in column), (step, name, number)
                rested += not moved and filters in opt.state
    assert rested > 10  # sets that have momentum, and did not move by it


def test_path_length_takes_one_route_through_both_ends(monkeypatch):
    from metrics import perceptual_path
    from metrics.features import Subject

    G = banked().eval()
    seen = []
    monkeypatch.setattr(perceptual_path, "to_rgb", lambda x: x)
    steps = perceptual_path.PathSteps(
        Subject(G), 8, lpips=lambda x: x.flatten(1), space="z", sampling="full"
    )
    steps.G.synthesis.b8.conv0.register_forward_pre_hook(lambda layer, _: seen.append(layer.route))
    assert torch.isfinite(steps.load(0, 8)).all()
    assert seen[0][:8] == seen[0][8:] and len(set(seen[0])) > 1


def options_with(tiny_options, **options):
    return {**tiny_options, "plugins": {**tiny_options["plugins"], "bank": {"size": 5, **options}}}


def test_training_from_scratch_saves_averages_and_goes_on(tiny_options, tmp_path):
    options = options_with(tiny_options)
    train(options, tmp_path, CPU)
    saved = pickles.load(tmp_path / "network-snapshot-000000-024.pkl")
    start, _ = training_loop.construct(options, ImageDataset(**options["dataset"]), CPU)
    assert banks_of(saved.G) == {"size": 5, "layers": candidates(saved.G)[:2]}
    first = dict(start.G.synthesis.named_parameters())
    assert (first["b4.conv1.bank.0"] - first["b4.conv1.bank.1"]).abs().mean() > 0.5
    for name, mean in saved.G_ema.synthesis.named_parameters():
        if ".bank." in name:  # the average lies between the start and the end
            now = saved.G.synthesis.get_parameter(name)
            assert (mean - first[name]).norm() <= (now - first[name]).norm()
            assert torch.equal(start.G_ema.synthesis.get_parameter(name), first[name])
    resumed = {**options, "resume": str(tmp_path / "network-snapshot-000000-024.pkl")}
    again, _ = training_loop.construct(resumed, ImageDataset(**options["dataset"]), CPU)
    for name, value in again.G.state_dict().items():
        assert torch.equal(value, saved.G.state_dict()[name]), name


def test_interrupted_and_resumed_equals_uninterrupted(tiny_options, tmp_path, monkeypatch):
    options = options_with(tiny_options)
    states = []
    for name, shorter in (("whole", []), ("parts", [0.008])):
        run_dir = tmp_path / name
        run_dir.mkdir()
        for kimg in [*shorter, options["total_kimg"]]:
            train({**options, "total_kimg": kimg}, run_dir, CPU)
        states.append(torch.load(run_dir / "checkpoint-000000-024.pt", weights_only=True))
    for name, value in states[0]["G"].items():
        assert torch.equal(value, states[1]["G"][name]), name
    moments = [state["G_opt"]["state"] for state in states]
    assert moments[0].keys() == moments[1].keys()
    assert all(torch.equal(moments[0][k]["exp_avg"], moments[1][k]["exp_avg"]) for k in moments[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 4}, "--bank-size=4: the source network has 5 sets"),
        ({"size": 1}, "--bank-size=1: the source network has 5 sets"),
        ({"size": 5, "layers": "b16.*"}, "--bank-layers=.*has banks in b4.conv1, b8.conv0;"),
    ],
)
def test_other_banks_than_the_sources_are_refused(options, words):
    G = banked(size=5, layers=LAYERS[:2])
    with pytest.raises(ValueError, match=words):
        Plugins.create({"bank": options}).setup(Run(G, discriminator(), resumed="x"))


def test_a_banked_source_is_not_trained_without_the_plugin():
    G = banked().train()
    with pytest.raises(ValueError, match="add --bank-size=4"):
        G.synthesis(G.mapping(latents(2), None))


@pytest.mark.parametrize("options", [{"size": 0}, {"jitter": -1.0}, {"jitter": float("nan")}])
def test_nonsense_is_refused(options):
    with pytest.raises(ValueError, match=r"--bank-(size|jitter) must"):
        Plugins.create({"bank": options})


def test_layers_by_pattern():
    names = candidates(build())
    for patterns, expected in (
        ("", ["b4.conv1", "b8.conv0"]),
        ("*.conv1,b16.*", ["b4.conv1", "b8.conv1", *names[3:]]),
    ):
        bank_plugin(G := build(), layers=patterns)
        assert banks_of(G)["layers"] == expected
    with pytest.raises(ValueError, match=r"no layer 'b32\.\*'; there are b4\.conv1, b8"):
        bank_plugin(build(), layers="b4.*,b32.*")


def gradients(rank, world):
    """Return the gradients of G's filter sets for this rank's share of four samples."""
    G = build()
    plugins = bank_plugin(G)
    synthesis = functools.partial(G.synthesis, noise_mode="const")
    D = discriminator().eval()
    loss = StyleGAN2Loss(CPU, G.mapping, synthesis, D, plugins, style_mixing_prob=0)
    G.eval().requires_grad_(True)
    z = latents(4).chunk(world)[rank]
    for part in z.split(2):
        gain = len(part) / len(z)
        loss.accumulate_gradients("Gmain", part, part, part, torch.zeros(2, 0), gain=gain)
    distributed.average_gradients(G.parameters())
    return {name: p.grad for name, p in G.named_parameters()}


def on_a_rank(out):
    torch.set_num_threads(1)
    distributed.init("cpu")
    torch.save(gradients(distributed.rank(), 2), out / f"{distributed.rank()}.pt")
    distributed.shutdown()


def test_two_ranks_agree_on_what_was_taken(tmp_path):
    distributed.spawn(on_a_rank, (tmp_path,), 2)
    alone = gradients(0, 1)
    assert any(grad is None for grad in alone.values())
    for rank in range(2):
        for name, grad in torch.load(tmp_path / f"{rank}.pt").items():
            assert (grad is None) == (alone[name] is None), name
            if grad is not None:
                torch.testing.assert_close(grad, alone[name], rtol=1e-5, atol=1e-6)


def test_with_ewc_and_apa_sets_are_held_whatever_the_order(tiny_options, tmp_path):
    source = tmp_path / "source.pkl"
    pickles.save(source, G=build(), D=discriminator(), G_ema=build(1))
    penalties = []
    for names in (["ewc", "bank", "apa"], ["bank", "apa", "ewc"]):
        methods = {"ewc": {"lambda_": 10.0, "samples": 8}, "bank": {"size": 3}, "apa": {}}
        options = {**tiny_options, "resume": str(source)}
        options["plugins"] = {name: methods[name] for name in names}
        run_dir = tmp_path / names[0]
        run_dir.mkdir()
        train({**options, "total_kimg": 0.008}, run_dir, CPU)
        state = torch.load(run_dir / "checkpoint-000000-008.pt", weights_only=True)
        penalties.append(state["plugins"]["ewc.fisher_G"])
        assert state["plugins"]["ewc.anchor_G"].numel() == sum(
            value.numel()
            for name, value in state["G"].items()
            if not name.endswith(("noise_const", "resample_filter", "w_avg"))
        )
    assert torch.equal(*penalties)


@pytest.fixture
def banked_file(tmp_path):
    path = tmp_path / "banked.pkl"
    pickles.save(path, G=banked(), D=discriminator(), G_ema=banked(seed=1))
    return path


def test_a_pickle_keeps_banks(banked_file):
    loaded, G = pickles.load(banked_file).G_ema, banked(seed=1)
    assert torch.equal(images(loaded, latents(5)), images(G, latents(5)))
    assert banks_of(loaded) == banks_of(G) == {"size": 4, "layers": LAYERS}


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
def test_conversions_keep_banks(banked_file, tmp_path, suffix):
    other = tmp_path / f"other{suffix}"
    result = CliRunner().invoke(convert.main, [str(banked_file), str(other)])
    assert result.exit_code == 0, result.output
    wanted, found = (pickles.load(path).G_ema for path in (banked_file, other))
    assert banks_of(found) == banks_of(wanted)
    assert torch.equal(images(found, latents(3)), images(wanted, latents(3)))


@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_formats_without_banks_refuse_them(banked_file, tmp_path, suffix):
    result = CliRunner().invoke(convert.main, [str(banked_file), str(tmp_path / f"other{suffix}")])
    assert result.exit_code == 2 and result.output.count("\n") == 1
    assert "method bank has made; make an ordinary network of one route first" in result.output
    assert not list(tmp_path.glob("other*"))


def test_other_readers_get_one_plain_line(banked_file):
    texts = [text for _, text, _ in pickletools.genops(banked_file.read_bytes())]
    source, other = (t for t in texts if isinstance(t, str) and t.startswith("raise ImportError"))
    assert source == other  # G's and G_ema's
    with pytest.raises(ImportError, match=r"python -m tools\.bank_export") as caught:
        exec(source, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("banks", "words"),
    [
        ({"size": 10**9, "layers": LAYERS}, "size of the bank is 1000000000"),
        ({"size": 0, "layers": LAYERS}, "size of the bank is 0"),
        ({"size": 4, "layers": ["b4.torgb"]}, "must be among G's"),
        ({"size": 4, "layers": LAYERS[:2] * 2}, "cannot be built"),
        ({"size": 3, "layers": LAYERS}, "unknown tensor"),
        ({"size": 4}, "missing"),
        (7, "cannot be built"),
    ],
)
def test_a_file_with_impossible_banks_is_refused(tmp_path, banks, words):
    G = banked()
    G.init_kwargs = {**G.init_kwargs, "bank": banks}
    (tmp_path / "x.pkl").write_bytes(snapshot(G=network(G)))
    with pytest.raises(pickles.PickleError, match=words):
        pickles.load(tmp_path / "x.pkl")


@pytest.mark.parametrize("route", ["3,1,0", "mean"])
def test_export_writes_a_stock_pickle_of_a_route(banked_file, tmp_path, route):
    out, run = tmp_path / "stock.pkl", tmp_path / "run"
    run.mkdir()
    (run / "network-snapshot-000001.pkl").write_bytes(banked_file.read_bytes())
    (run / "network-snapshot-000001.prior.npz").write_bytes(b"conditions")
    done = CliRunner().invoke(bank_export.main, [str(run), str(out), f"--route={route}"])
    assert done.output == f"wrote 2 files to {tmp_path}\n"
    assert out.with_suffix(".prior.npz").read_bytes() == b"conditions"
    stock, source = pickles.load(out), pickles.load(banked_file)
    assert stock.G.state_dict().keys() == build().state_dict().keys()
    for key in ("G", "G_ema"):
        G = getattr(source, key)
        chosen = images(G, latents(3), route=parse_route(route, G))
        torch.testing.assert_close(images(getattr(stock, key), latents(3)), chosen)
        assert banks_of(getattr(stock, key)) is None


@pytest.mark.parametrize("route", ["3,1", "3,1,4", "3,1,-1", "a,b,c", "", "3,1,1,"])
def test_a_route_that_does_not_fit_is_one_line(banked_file, tmp_path, route):
    command = [str(banked_file), str(tmp_path / "stock.pkl"), f"--route={route}"]
    done = CliRunner().invoke(bank_export.main, command)
    assert done.exit_code == 2
    assert re.match(r"Error: --route=.*: give 3 numbers from 0 to 3.*\n$", done.output)


def test_export_without_banks_is_one_line(tmp_path):
    pickles.save(tmp_path / "x.pkl", G=build(), D=discriminator(), G_ema=build())
    done = CliRunner().invoke(bank_export.main, [str(tmp_path / "x.pkl"), str(tmp_path / "y.pkl")])
    assert done.exit_code == 2 and "has no filter banks" in done.output


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_generate_takes_routes(banked_file, tmp_path):
    for route in ("random", "mean", "3,1,0"):
        arguments = ["--network", banked_file, "--seeds=5", "--route", route, "--routes-grid"]
        done = CliRunner().invoke(
            generate.main, [*map(str, arguments), "--outdir", str(tmp_path / route)]
        )
        assert done.exit_code == 0, done.output
    drawn, mean, chosen = (
        pixels(tmp_path / r / "seed0005.png") for r in ("random", "mean", "3,1,0")
    )
    assert (drawn != mean).any() and (drawn != chosen).any()
    G = pickles.load(banked_file).G_ema.to(distributed.init())
    z = torch.from_numpy(np.random.RandomState(5).randn(1, G.z_dim)).float().to(distributed.init())
    expected = generate_pixels(images(G, z, route=torch.tensor([[3, 1, 0]])))
    assert (chosen == expected).all()
    assert Image.open(tmp_path / "mean" / "routes.png").width > 8 * 16


@pytest.mark.parametrize("route", ["random", "mean", "3,1,0"])
def test_seeds_drawn_together_take_their_own_routes(banked_file, tmp_path, route):
    for batch in "14":
        arguments = [f"--network={banked_file}", "--seeds=0-3", f"--route={route}"]
        arguments += [f"--batch={batch}", f"--outdir={tmp_path / batch}"]
        assert CliRunner().invoke(generate.main, arguments).exit_code == 0
    for seed in range(4):
        one, other = (pixels(tmp_path / b / f"seed000{seed}.png").astype(int) for b in "14")
        assert abs(one - other).max() <= 1


def generate_pixels(img):
    return (img[0] * 127.5 + 128).clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def test_generate_without_banks_refuses_routes(tmp_path):
    pickles.save(tmp_path / "x.pkl", G=build(), D=discriminator(), G_ema=build())
    for option in ("--route=mean", "--routes-grid"):
        arguments = [f"--network={tmp_path / 'x.pkl'}", "--seeds=1", option]
        done = CliRunner().invoke(generate.main, [*arguments, f"--outdir={tmp_path / 'out'}"])
        assert done.exit_code == 2 and "has no filter banks; drop it" in done.output
        assert not (tmp_path / "out").exists()


def test_ewc_holds_sets_to_the_source_s_filters_without_the_jitter(tmp_path):
    (path := tmp_path / "source.pkl").write_bytes(b"stands for a network")
    G, step = build(), Step("Gmain", logits=torch.zeros(1, 1))
    filters = G.synthesis.b4.conv1.weight.detach().clone()
    plugins = Plugins.create({"bank": {"size": 2, "layers": "b4.conv1"}, "ewc": {"lambda_": 1.0}})
    assert plugins["bank"].jitter == 0.01
    plugins["ewc"].samples = 2
    plugins.setup(Run(G, discriminator(), resumed=str(path)))
    assert plugins.penalty(step) > 0  # of the jitter
    for jittered in G.synthesis.b4.conv1.bank:
        jittered.data.copy_(filters)
    assert plugins.penalty(step) == 0
