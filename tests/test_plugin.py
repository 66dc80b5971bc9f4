"""The plugin protocol: registry, refusals at import, neutrality, order, random numbers."""

from __future__ import annotations

import itertools

import pytest
import torch

from stylegan2_fewshot import Plugin, Plugins, Run, Step, distributed, register
from stylegan2_fewshot.external import load_external
from stylegan2_fewshot.loss import StyleGAN2Loss
from stylegan2_fewshot.plugin import find, isolated, registry, seed_of
from training.networks import Discriminator, Generator

ALL = list(registry().values())
CPU = torch.device("cpu")


@pytest.fixture
def empty_registry():
    with isolated(empty=True):
        yield


@pytest.fixture
def own_registry():
    with isolated():
        yield


def test_registry_is_alphabetical_and_named_like_files():
    assert list(registry()) == sorted(registry())
    for name, cls in registry().items():
        assert cls.__module__ == f"stylegan2_fewshot.methods.{name}"
        assert cls.name == name and find(name) is cls


def test_unknown_name():
    with pytest.raises(ValueError, match="no plugin 'nope'; there are ada, adam, apa"):
        find("nope")


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.name)
def test_every_plugin_takes_its_neutral_settings(cls):
    assert isinstance(cls(**cls.neutral), Plugin)


def test_duplicate_name_is_a_type_error(empty_registry):
    class Mine(Plugin):
        def penalty(self, step):
            return None

    register("mine")(Mine)
    with pytest.raises(TypeError, match="'mine' is registered twice"):
        register("mine")(type("Other", (Mine,), {"penalty": Mine.penalty}))


def test_misspelt_hook_is_a_type_error(empty_registry):
    class Mine(Plugin):
        def penalize(self, step):
            return None

    with pytest.raises(TypeError, match="'penalize' is not a hook; did you mean 'penalty'"):
        register("mine")(Mine)
    assert registry() == {}


def test_no_hook_is_a_type_error(empty_registry):
    with pytest.raises(TypeError, match="'mine' overrides no hook"):
        register("mine")(type("Mine", (Plugin,), {"_private": lambda self: None}))


def test_third_party_plugin(empty_registry, tmp_path, monkeypatch):
    (tmp_path / "somebodys_plugins.py").write_text(
        "from stylegan2_fewshot import Plugin\n"
        "class Mine(Plugin):\n"
        "    def trainable(self, net, name): return net == 'G'\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cls = load_external("somebodys_plugins:Mine")
    assert registry() == {"mine": cls} and load_external("somebodys_plugins:Mine") is cls
    assert Plugins.create({"mine": {}}).trainable("D", "b4.out.weight") is False
    for place in ("nowhere:Mine", "somebodys_plugins", "somebodys_plugins:Yours", ":Mine"):
        with pytest.raises(ValueError, match=f"--plugin={place}: .*package.module:Class"):
            load_external(place)
    with pytest.raises(ValueError, match="not a subclass"):
        load_external("somebodys_plugins:number")


def test_third_party_plugin_that_extends_one_of_ours(monkeypatch, tmp_path, own_registry):
    (tmp_path / "somebodys_lecam.py").write_text(
        "from stylegan2_fewshot.methods.lecam import LeCam\n"
        "class Firmer(LeCam):\n"
        "    def trainable(self, net, name): return net == 'D'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cls = load_external("somebodys_lecam:Firmer")
    assert find("firmer") is cls and find("lecam") is not cls
    assert load_external("stylegan2_fewshot.methods.lecam:LeCam") is find("lecam")


def test_without_plugins_every_hook_is_the_identity():
    plugins, img, c = Plugins(), torch.rand(2, 3, 4, 4), torch.rand(2, 5)
    step = Step("Dreal")
    assert plugins.condition(c) is c and plugins.augment(img, step) is img
    assert plugins.real_images(img, c, step) == (img, c)
    assert plugins.trainable("G", "x") is True and plugins.penalty(step) is None
    assert not list(plugins.state_dict())


class Scale(Plugin):
    """A fold that does not commute with `Shift`."""

    def augment(self, img, step):
        return img * 3

    def condition(self, dataset):
        return dataset * 3

    def real_images(self, img, c, step):
        return img * 3, c * 3

    def penalty(self, step):
        return torch.tensor(0.1)

    def trainable(self, net, name):
        return net == "G"


class Shift(Plugin):
    def augment(self, img, step):
        return img + 1

    def condition(self, dataset):
        return dataset + 1

    def real_images(self, img, c, step):
        return img + 1, c + 1

    def penalty(self, step):
        return torch.tensor(0.2)


class Watch(Plugin):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros([]))
        self.grad = None

    def setup(self, run):
        self.run = run

    def observe(self, step):
        self.seen += 1
        self.grad = torch.is_grad_enabled()

    def after_step(self, cur_nimg):
        self.seen += 10
        self.grad = torch.is_grad_enabled()


def test_folds_follow_the_order_given():
    img, c, step = torch.ones(1, 1, 2, 2), torch.ones(1, 2), Step("Dreal")
    first, then = (
        Plugins({"scale": Scale(), "shift": Shift()}),
        Plugins({"shift": Shift(), "scale": Scale()}),
    )
    for plugins, expected in ((first, 4), (then, 6)):
        assert (plugins.augment(img, step) == expected).all()
        assert (plugins.condition(c) == expected).all()
        assert all((x == expected).all() for x in plugins.real_images(img, c, step))


def test_everything_else_is_free_of_order():
    members = {"scale": Scale(), "shift": Shift(), "watch": Watch()}
    for order in itertools.permutations(members.items()):
        plugins = Plugins(dict(order))
        assert plugins.penalty(Step("Dreal")).item() == pytest.approx(0.3)
        assert plugins.trainable("G", "x") and not plugins.trainable("D", "x")


def test_each_hooks_run_without_gradients_and_state_is_in_buffers():
    plugins = Plugins({"watch": Watch()})
    run = Run(G=torch.nn.Identity(), D=torch.nn.Identity(), seed=7)
    plugins.setup(run)
    assert plugins["watch"].run is run
    plugins.observe(Step("Gmain"))
    assert plugins["watch"].grad is False
    plugins.after_step(0)
    assert plugins["watch"].grad is False
    assert {key: value.item() for key, value in plugins.state_dict().items()} == {"watch.seen": 11}


def test_random_numbers_depend_on_seed_iteration_rank_and_name(monkeypatch):
    def draws(seed=0, cur_nimg=0, rank=0, name="a"):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        cls = type("Named", (Shift,), {"name": name})
        plugins = Plugins({name: cls()})
        plugins.setup(Run(G=torch.nn.Identity(), D=torch.nn.Identity(), seed=seed))
        rng = plugins[name].rng(Step("Dreal", cur_nimg), CPU)
        return torch.rand(4, generator=rng).tolist()

    assert draws() == draws()
    others = [draws(seed=1), draws(cur_nimg=8), draws(rank=1), draws(name="b")]
    assert all(other != draws() for other in others)


def test_random_numbers_go_on_within_an_iteration_and_leave_torch_alone():
    watch = Shift()
    before = torch.random.get_rng_state()
    one = torch.rand(2, generator=watch.rng(Step("Dreal", 8), CPU))
    two = torch.rand(2, generator=watch.rng(Step("Dr1", 8), CPU))
    torch.rand(2, generator=watch.rng(Step("Dreal", 16), CPU))
    again = torch.rand(4, generator=watch.rng(Step("Dreal", 8), CPU))
    assert not torch.equal(one, two)
    assert torch.equal(torch.cat([one, two]), again)  # as a resumed run would draw it
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seed_of_is_the_same_on_every_machine():
    assert seed_of(0, 0, 0, "apa") == 1881754178657788459
    assert seed_of(1, 23) != seed_of(12, 3)
    assert all(0 <= seed_of(i) < 2**63 for i in range(100))


class FourImages:
    """A data set of four images without labels."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.full((3, 16, 16), 60 * index, dtype=torch.uint8).numpy(), self.get_label(index)

    def get_label(self, index):
        return torch.zeros(0).numpy()


def gradients(options):
    """Return gradients of G and D after two iterations of all phases, with these plugins."""
    torch.manual_seed(0)
    width = {"channel_base": 64, "channel_max": 8}
    G = Generator(16, 0, 16, 16, 3, mapping_kwargs={"num_layers": 1}, synthesis_kwargs=width)
    D = Discriminator(0, 16, 3, **width)
    plugins = Plugins.create(options)
    plugins.setup(Run(G, D, dataset=FourImages(), batch_size=4))
    for name, net in (("G", G), ("D", D)):
        for key, parameter in net.named_parameters():
            parameter.requires_grad_(plugins.trainable(name, key))
    loss = StyleGAN2Loss(CPU, G.mapping, G.synthesis, D, plugins)
    torch.manual_seed(1)
    real = torch.rand(4, 3, 16, 16) * 2 - 1
    c = torch.zeros(4, 0)
    for iteration in range(2):
        loss.cur_nimg = iteration * 4
        for phase in ("Gmain", "Greg", "Dmain", "Dreg"):
            for name, net in (("G", G), ("D", D)):
                net.requires_grad_(phase.startswith(name))
            loss.accumulate_gradients(phase, real, c, torch.randn(4, 16), c)
        plugins.after_step(loss.cur_nimg)
    return {key: p.grad for net in (G, D) for key, p in net.named_parameters()}


@pytest.fixture(scope="module")
def plain():
    return gradients({})


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.name)
def test_neutral_settings_leave_training_bit_identical(cls, plain):
    ours = gradients({cls.name: dict(cls.neutral)})
    assert all(torch.equal(ours[key], plain[key]) for key in plain)


def test_other_settings_do_change_it(plain):
    ours = gradients({"diffaugment": {}})
    assert not all(torch.equal(ours[key], plain[key]) for key in plain)
