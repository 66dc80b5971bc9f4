"""Every phase with every method, as a CUDA graph would have to hold it; and what it must not."""

from __future__ import annotations

import pytest
import torch

from stylegan2_fewshot import Plugin, Plugins, stats
from stylegan2_fewshot.capture import NotCapturable, Rules, why_not
from stylegan2_fewshot.plugin import find, registry
from training.networks import Discriminator, Generator

CASES = [
    {},
    {"lecam": {"lambda_": 0.1}},
    {"ewc": {"ratio": 0.5}},
    {"freezed": {"freezed": 2}},
    {"apa": {}},
    {"apa": {"signal": "lambda_rf", "signal_on": "real"}},
    {"prior": {}},
    {"bank": {"size": 1}},
    {
        "apa": {},
        "ewc": {"lambda_": 1.0, "network": "GD"},
        "lecam": {"lambda_": 0.1},
        "freezed": {"freezed": 1},
    },
    {"ada": {}},
    {"fixed": {"p": 0.5}},
    {"diffaugment": {}},
    {"bank": {"size": 2}},
    {"tune": {"tune": "*.torgb.*"}},
    {"fsgan": {"fsgan": "GD"}},
    {"cdc": {}},
    {"dcl": {}},
    {"adam": {}},
    {"rick": {}},
    {"minegan": {}},
    {"minegan": {"layers": 0}},
    {"lecam": {"lambda_": 0.1}, "diffaugment": {}},
]


def named(options):
    return "+".join(
        ":".join([name, *(f"{key}={value}" for key, value in settings.items())])
        for name, settings in options.items()
    )


@pytest.mark.parametrize("options", CASES, ids=named)
def test_a_method_can_be_captured_exactly_where_it_says_so(options):
    plugins = Plugins.create(options)
    reason = why_not(plugins)
    assert (reason is None) == all(plugin.capturable for plugin in plugins.active), reason


UNLISTED = sorted(set(registry()) - {name for case in CASES for name in case})


@pytest.mark.parametrize("name", UNLISTED)
def test_a_method_without_a_case_of_its_own_claims_no_more_than_holds(name):
    cls = find(name)
    plugins = Plugins.create({name: dict(cls.neutral)})
    reason = why_not(plugins)
    assert reason is None or not plugins[name].capturable, reason


def test_the_real_networks_can_be_captured_with_accumulation():
    c_dim = 5
    width = {"channel_base": 64, "channel_max": 8, "num_fp16_res": 1, "conv_clamp": 256}
    G = Generator(8, c_dim, 8, 8, 3, mapping_kwargs={"num_layers": 1}, synthesis_kwargs=width)
    D = Discriminator(c_dim, 8, 3, **width, epilogue_kwargs={"mbstd_group_size": 2})
    assert why_not(Plugins.create({"apa": {}}), (G, D), parts=2) is None


def test_the_reason_names_operation_hook_and_plugin():
    reason = why_not(Plugins({"ada": find("ada")()}))
    assert reason.startswith("the CPU waits for a value of the device (aten._local_scalar_dense")
    assert reason.endswith("in the hook 'augment' of the plugin 'ada'")


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


class Peeks(Plugin):
    """A third party's method that looks at a value in one of the hooks of a phase."""

    def __init__(self, hook):
        super().__init__()
        self.hook = hook

    def _look(self, x, hook):
        if hook == self.hook:
            x.sum().item()

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


@pytest.mark.parametrize("hook", ["real_images", "augment", "observe", "penalty", "before_step"])
def test_every_hook_of_a_phase_is_looked_at(hook):
    assert f"in the hook {hook!r}" in why_not(Plugins({"peeks": Peeks(hook)}))


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
