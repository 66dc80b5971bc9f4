"""Every phase with every method, as a CUDA graph would have to hold it; and what it must not."""

from __future__ import annotations

import itertools

import pytest
import torch

from stylegan2_fewshot import Plugin, Plugins, stats
from stylegan2_fewshot.capture import NotCapturable, Rules, waits, why_not
from stylegan2_fewshot.plugin import find, registry
from stylegan2_fewshot.watched import Watched
from training.networks import Discriminator, Generator

HELD = [
    {},
    {"ada": {"augpipe": "bgcfnc"}},
    {"fixed": {"p": 0.5}},
    {"diffaugment": {}},
    {"lecam": {"lambda_": 0.1, "start_kimg": 1.0}},
    {"ewc": {"ratio": 0.5}},
    {"freezed": {"freezed": 2}},
    {"apa": {}},
    {"apa": {"signal": "lambda_rf", "signal_on": "real"}},
    {"prior": {}},
    {"bank": {"size": 1}},
    {"tune": {"tune": "*.torgb.*"}},
    {"fsgan": {"fsgan": "GD"}},
    {"dcl": {}},
    {"adam": {}},
    {"rick": {}},
    {"minegan": {}},
]
NOT_HELD = {  # the plugin and its hook that a graph cannot hold
    "bank": ({"size": 2}, "synthesis"),
    "cdc": ({}, "penalty"),
}
IN_PASSES = [o for o in HELD if o.keys() & {"lecam", "ewc", "dcl", "rick"}] + [{"apa": {}}]
PAIRS = [{**one, **other} for one, other in itertools.combinations(IN_PASSES, 2)]


def named(options):
    return "+".join(
        ":".join([name, *(f"{key}={value}" for key, value in settings.items())])
        for name, settings in options.items()
    )


@pytest.mark.parametrize("options", HELD, ids=named)
def test_a_graph_can_hold_the_passes_of_these_methods(options):
    assert why_not(Plugins.create(options)) is None


def test_a_graph_can_hold_any_two_with_hooks_in_passes_and_five():
    four = {
        "ada": {},
        "apa": {},
        "ewc": {"lambda_": 1.0, "network": "GD"},
        "freezed": {"freezed": 1},
    }
    for options in [*PAIRS, {**four, "lecam": {"lambda_": 0.1}}]:
        assert why_not(Plugins.create(options)) is None, options


@pytest.mark.parametrize("name", NOT_HELD)
def test_a_graph_cannot_hold_the_passes_of_these(name):
    settings, hook = NOT_HELD[name]
    reason = why_not(Plugins.create({"lecam": {"lambda_": 0.1}, name: settings}))
    assert reason.endswith(f"in the hook {hook!r} of the plugin {name!r}")


def test_every_method_has_a_case():
    assert {name for options in HELD for name in options} | set(NOT_HELD) == set(registry())


@pytest.mark.parametrize("options", HELD, ids=named)
def test_none_of_these_waits_for_the_device_around_a_step(options):
    assert waits(Plugins.create(options)) is None


def test_the_real_networks_can_be_captured_with_accumulation():
    c_dim = 5
    width = {"channel_base": 64, "channel_max": 8, "num_fp16_res": 1, "conv_clamp": 256}
    G = Generator(8, c_dim, 8, 8, 3, mapping_kwargs={"num_layers": 1}, synthesis_kwargs=width)
    D = Discriminator(c_dim, 8, 3, **width, epilogue_kwargs={"mbstd_group_size": 2})
    assert why_not(Plugins.create({"apa": {}}), (G, D), parts=2) is None


def test_the_reason_names_operation_hook_and_plugin():
    reason = why_not(Plugins({"cdc": find("cdc")()}))
    assert reason.startswith("the CPU waits for a value of the device (aten._local_scalar_dense")
    assert reason.endswith("in the hook 'penalty' of the plugin 'cdc'")


def test_statistics_are_as_they_were_before():
    stats.collect()
    stats.report("Mine", 3.0)
    assert why_not(Plugins({"peeks": Peeks("augment")})) is not None
    assert {name: moments.mean for name, moments in stats.collect().items()} == {"Mine": 3.0}


SYNC = "waits for a value"
SIZE = "size"
TO_CPU = "wanted on the CPU"
FROM_CPU = "copy from the CPU's memory"
VIOLATIONS = {  # name -> what `x`, on the device, meets; part of the message
    "item": (lambda x: x.sum().item(), SYNC),
    "if": (lambda x: 1 if x.sum() > 0 else 0, SYNC),
    "float": (lambda x: float(x.sum()), SYNC),
    "equal": (lambda x: torch.equal(x, x), SYNC),
    "tolist": (lambda x: x.tolist(), TO_CPU),
    "cpu": (lambda x: x.cpu(), TO_CPU),
    "copy to the CPU": (lambda x: torch.zeros(3, 4).copy_(x), TO_CPU),
    "numpy": (lambda x: x.numpy(), TO_CPU),
    "nonzero": (lambda x: x.nonzero(), SIZE),
    "mask": (lambda x: x[x > 0], SIZE),
    "masked_select": (lambda x: x.masked_select(x > 0), SIZE),
    "unique": (lambda x: x.unique(), SIZE),
    "repeat_interleave": (lambda x: x.repeat_interleave(x[:, 0].long(), 0), SIZE),
    "to": (lambda x: torch.zeros(3, 4).to(x.device), FROM_CPU),
    "copy_": (lambda x: x.copy_(torch.zeros(3, 4)), FROM_CPU),
    "index on the CPU": (lambda x: x[torch.zeros(2, dtype=torch.long)], FROM_CPU),
    "list": (lambda x: x[[0, 1]], FROM_CPU),
    "tensor": (lambda x: torch.tensor([1.0, 2.0], device=x.device), FROM_CPU),
    "as_tensor": (lambda x: torch.as_tensor(1.0, device=x.device), FROM_CPU),
    "new_tensor": (lambda x: x.new_tensor(3.0), FROM_CPU),
    "number": (lambda x: x * torch.ones([]), "a number on the CPU"),
    "host's draw": (lambda x: torch.rand(3), "random numbers on the CPU"),
    "generator": (
        lambda x: torch.rand(3, device=x.device, generator=torch.Generator()),
        "generator that the graph does not know",
    ),
}


@pytest.mark.parametrize("kind", VIOLATIONS)
def test_what_capture_refuses_is_refused(kind):
    act, message = VIOLATIONS[kind]
    with Rules(), pytest.raises(NotCapturable, match=message):
        act(torch.empty(3, 4, device="meta"))


def test_what_capture_allows_is_allowed():
    known = torch.Generator()
    x = torch.empty(3, 4, device="meta", requires_grad=True)
    with Rules(lambda: [known]):
        y = torch.where(x > 0, 1.0, x * 2).square() + torch.randn_like(x)
        y = y + torch.rand(3, 4, device="meta", generator=known)
        y = y.index_select(0, torch.arange(2, device="meta"))
        torch.zeros(3, 4, device="meta")[x > 0] = 0.0
        torch.autograd.grad(y.sum(), [x], create_graph=True)[0].square().sum().backward()
        torch.zeros(3).sum().item()  # the CPU's own business
    assert x.grad.shape == x.shape


def test_what_is_made_ahead_of_a_pass_is_the_cpus_own_business():
    class Ahead(Plugin):
        def penalty(self, step):
            return self.ahead(step, step.c.device, lambda rng: torch.rand(3, generator=rng)).sum()

    assert why_not(Plugins({"ahead": Ahead()})) is None


class Peeks(Plugin):
    """A third party's method that looks at a value in one of the hooks of a phase."""

    def __init__(self, hook):
        super().__init__()
        self.hook = hook

    def _look(self, x, hook):
        if hook == self.hook:
            x.sum().item()

    def synthesis(self, z):
        self._look(z, "synthesis")
        return {}

    def real_images(self, img, c, step):
        self._look(img, "real_images")
        return img, c

    def augment(self, img, step):
        self._look(img, "augment")
        return img

    def observe(self, step):
        if step.phase == "Gpl":
            self._look(step.ws, "observe")

    def penalty(self, step):
        if step.phase == "Dr1":
            self._look(step.logits, "penalty")

    def before_step(self, net, params):
        self._look(next(iter(params.values())).grad, "before_step")

    def after_optimizer(self, net, params):
        self._look(next(iter(params.values())), "after_optimizer")


@pytest.mark.parametrize("hook", ["synthesis", "real_images", "augment", "observe", "penalty"])
def test_every_hook_of_a_pass_is_looked_at(hook):
    assert f"in the hook {hook!r}" in why_not(Plugins({"peeks": Peeks(hook)}))


@pytest.mark.parametrize("hook", ["before_step", "after_optimizer"])
def test_hooks_around_a_step_may_wait_and_are_looked_at_too(hook):
    assert why_not(Plugins({"peeks": Peeks(hook)})) is None
    assert f"in the hook {hook!r}" in waits(Plugins({"peeks": Peeks(hook)}))


class Ramp(Plugin):
    """Decides by the number of images, or computes with it."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def penalty(self, step):
        return self.factor(step.cur_nimg) * step.ws.square().mean() if step.ws is not None else None


@pytest.mark.parametrize(
    "factor",
    [lambda n: n / 1000, lambda n: 1 - n, float, int, lambda n: 1.0 if n else 0.0, hash, str],
)
def test_computing_with_the_number_of_images_is_refused(factor):
    assert "cur_nimg is computed with" in why_not(Plugins({"ramp": Ramp(factor)}))


def test_comparing_the_number_of_images_is_allowed_and_remembered():
    assert why_not(Plugins({"ramp": Ramp(lambda n: 1.0 if 5000 <= n < 9000 else 0.0)})) is None
    seen = Watched(6000)
    assert 5000 <= seen < 9000
    assert [seen.agrees(n) for n in (4999, 5000, 8999, 9000)] == [False, True, True, False]


class Reports(Plugin):
    def observe(self, step):
        stats.report("Mine/number", 0.5)


def test_a_statistic_that_a_replay_would_not_count_is_refused():
    assert "the statistic Mine/number" in why_not(Plugins({"reports": Reports()}))


class SlowGradient(torch.autograd.Function):
    """An identity whose gradient looks at a value."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy * float(dy.sum())


class SlowBackward(Plugin):
    def augment(self, img, step):
        return SlowGradient.apply(img)


def test_gradients_are_looked_at_too():
    assert why_not(Plugins({"slow": SlowBackward()})).startswith("the CPU waits")
