"""Laws that every method obeys, as functions to run on one's own, and the toy networks they use."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn

from . import options, plugin
from .loss import StyleGAN2Loss
from .ops import bias_act, modulated_conv2d
from .plugin import Plugin, Plugins, Run

PHASES = ("Gmain", "Greg", "Dmain", "Dreg")
BATCH = 4
Z_DIM = 8
CHANNELS = 4
RESOLUTION = 8


class _Layer(nn.Module):
    def __init__(self, outputs: int = CHANNELS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, CHANNELS, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.affine = nn.Linear(Z_DIM, CHANNELS)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = modulated_conv2d(x, self.weight, 1 + self.affine(w), padding=1)
        return x + self.bias[None, :, None, None]


class _Block(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        if not first:
            self.conv0 = _Layer()
        self.conv1, self.torgb = _Layer(), _Layer(3)
        self.num_ws = 2 if first else 3


class _Dense(nn.Linear):
    activation, weight_gain, bias_gain = "lrelu", 1.0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        return bias_act(super().forward(x), act=self.activation)


class ToyMapping(nn.Module):
    """Latents `[N, 8]` to ws `[N, 5, 8]`, in layers named as StyleGAN2's."""

    def __init__(self, num_ws: int) -> None:
        super().__init__()
        self.num_layers, self.num_ws = 1, num_ws
        self.fc0 = _Dense(Z_DIM, Z_DIM)

    def forward(self, z: Tensor, c: Tensor | None, skip_w_avg_update: bool = False) -> Tensor:
        w = z
        for number in range(self.num_layers):
            w = self.get_submodule(f"fc{number}")(w)
        return w[:, None].expand(-1, self.num_ws, -1)


class ToySynthesis(nn.Module):
    """Latents `[N, 5, 8]` to images `[N, 3, 8, 8]`, in layers named as StyleGAN2's."""

    def __init__(self) -> None:
        super().__init__()
        self.const = nn.Parameter(torch.randn(CHANNELS, 4, 4))
        self.b4, self.b8 = _Block(first=True), _Block(first=False)
        self.num_ws = 5

    def forward(self, ws: Tensor, noise_mode: str = "random", **kwargs: Any) -> Tensor:
        w = iter(ws.unbind(1))
        x = self.b4.conv1(self.const.expand(len(ws), -1, -1, -1), next(w))
        img = self.b4.torgb(x, next(w)).repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = x.relu().repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = self.b8.conv1(self.b8.conv0(x, next(w)).relu(), next(w))
        result: Tensor = img + self.b8.torgb(x, next(w))
        return result


class ToyGenerator(nn.Module):
    """A generator of 8x8 images with the interface of StyleGAN2's."""

    def __init__(self) -> None:
        super().__init__()
        self.init_kwargs: dict[str, Any] = {}
        self.z_dim, self.w_dim, self.c_dim, self.img_resolution = Z_DIM, Z_DIM, 0, RESOLUTION
        self.synthesis = ToySynthesis()
        self.num_ws = self.synthesis.num_ws
        self.mapping = ToyMapping(self.num_ws)

    def forward(self, z: Tensor, c: Tensor | None = None, **kwargs: Any) -> Tensor:
        result: Tensor = self.synthesis(self.mapping(z, c), **kwargs)
        return result


class _DiscriminatorBlock(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.fromrgb = nn.Conv2d(inputs, CHANNELS, 1)
        self.conv0 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, stride=2)


class ToyDiscriminator(nn.Module):
    """A discriminator of 8x8 images with the interface of StyleGAN2's."""

    def __init__(self) -> None:
        super().__init__()
        self.c_dim, self.img_resolution, self.architecture = 0, RESOLUTION, "resnet"
        self.block_resolutions = [RESOLUTION]
        self.b8, self.b4 = _DiscriminatorBlock(3), nn.Linear(CHANNELS * 16, 1)

    def forward(self, img: Tensor, c: Tensor | None = None, **kwargs: Any) -> Tensor:
        x = self.b8.conv0(self.b8.fromrgb(img)).relu()
        result: Tensor = self.b4(self.b8.conv1(x).relu().flatten(1))
        return result


class ToyImages:
    """A data set of four uint8 images without labels."""

    path, xflip, label_dim = "toy", False, 0

    def __len__(self) -> int:
        return BATCH

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image = torch.full((3, RESOLUTION, RESOLUTION), 60 * index, dtype=torch.uint8)
        return image.numpy(), self.get_label(index)

    def get_label(self, index: int) -> Any:
        return torch.zeros(0).numpy()


def steps(
    plugins: Plugins, *, iterations: int = 2, start: int = 0, resumed: str | None = None
) -> dict[str, Tensor]:
    """Train toy networks for some iterations; return their gradients by name.

    Args:
        plugins: What takes part; is set up here.
        iterations: Number of iterations of all four phases.
        start: Iteration to begin with, which the draws depend on.
        resumed: Path that the plugins take the networks to come from; None for from scratch.
    """
    torch.manual_seed(0)
    G, D = ToyGenerator(), ToyDiscriminator()
    plugins.setup(Run(G, D, dataset=ToyImages(), batch_size=BATCH, resumed=resumed))
    loss = StyleGAN2Loss(torch.device("cpu"), G.mapping, G.synthesis, D, plugins)
    named = {"G": G, "D": D}
    trained = {
        net: {k: p for k, p in module.named_parameters() if plugins.trainable(net, k)}
        for net, module in named.items()
    }
    c = torch.zeros(BATCH, 0)
    for iteration in range(start, start + iterations):
        torch.manual_seed(1 + iteration)
        loss.cur_nimg = iteration * BATCH
        real, z = torch.rand(BATCH, 3, RESOLUTION, RESOLUTION) * 2 - 1, torch.randn(BATCH, Z_DIM)
        for phase in PHASES:
            for net, module in named.items():
                module.requires_grad_(False)
                for param in trained[net].values():
                    param.requires_grad_(phase[0] == net)
            loss.accumulate_gradients(phase, real, c, z, c)
            plugins.before_step(phase[0], trained[phase[0]])
            plugins.after_optimizer(phase[0], trained[phase[0]])
        plugins.after_step(loss.cur_nimg)
    return {
        f"{net}.{name}": p.grad.clone()
        for net, module in named.items()
        for name, p in module.named_parameters()
        if p.grad is not None
    }


def check(cls: type[Plugin]) -> None:
    """Run the laws on a plugin class; it need not be registered.

    Raises:
        TypeError: A hook is misspelt or has other parameters, or an option lacks something.
        AssertionError: A law is broken; the message says which.
    """
    if cls not in plugin.registry().values():
        plugin.check(cls, cls.name or cls.__name__.lower())
    options.options_of(cls)
    neutral = steps(Plugins({cls.name: cls(**cls.neutral)}))
    plain = steps(Plugins())
    for name, gradient in plain.items():
        assert name in neutral and torch.equal(gradient, neutral[name]), (
            f"{cls.__name__}: neutral settings {dict(cls.neutral)} change the gradient of {name}"
        )
    method = cls(**cls.neutral)
    steps(Plugins({cls.name: method}))
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = cls(**cls.neutral)
    Plugins({cls.name: other}).setup(Run(ToyGenerator(), ToyDiscriminator(), batch_size=BATCH))
    other.load_state_dict(saved)
    for name, value in method.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), (
            f"{cls.__name__}: {name} does not survive a checkpoint"
        )
