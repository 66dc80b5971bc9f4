"""Generators some of whose layers hold several sets of filters: routes, making, undoing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ...plugin import seed_of

KEY = "bank"  # in a generator's `init_kwargs`
GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # odd, as a signed number
ODD = 0xBF58476D1CE4E5B9 - 2**64


def routes_of(z: Tensor, *, size: int, layers: int) -> Tensor:
    """Return the filter set of every sample in every layer, `[N, layers]` on the CPU.

    A fixed hash of the bits of z: uniform over sets, independent of the batch, the device and the
    state of all random number generators. So whatever determines z, a seed say, determines the
    route.

    Args:
        z: Latents `[N, z_dim]`.
        size: Number of sets per layer.
        layers: Number of layers with a bank.
    """
    bits = z.detach().float().contiguous().view(torch.int32).long()
    places = torch.arange(1, bits.shape[1] * layers + 1, device=z.device)
    factors = _scramble(places * GOLDEN).view(-1, layers) | 1
    mixed = _scramble((bits.unsqueeze(2) * factors).sum(1))  # modulo 2^64
    return ((mixed >> 20) & 0x7FFFFFFF).remainder(size).cpu()


def _scramble(x: Tensor) -> Tensor:
    x = (x ^ (x >> 30)) * ODD
    return x ^ (x >> 29)


class BankedLayer(torch.nn.Module):
    """A layer whose weight is a bank of filter sets; it stands where the layer stood.

    Its other parameters and buffers keep their names. What the layer computes is its own business:
    it is called with one set at a time as its weight.

    Args:
        layer: The layer; loses its weight.
        sets: The filter sets `[O, C, k, k]`.

    Attributes:
        bank: The sets, a parameter each: what no sample of a batch has taken has no gradient, and
            an optimizer leaves it where it is.
        route: The set of each sample of the batch to come, or None for the mean of all.
    """

    def __init__(self, layer: torch.nn.Module, sets: Iterable[Tensor]) -> None:
        super().__init__()
        needs_grad = layer.weight.requires_grad
        del layer.weight
        for name, parameter in layer.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in layer.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, child in layer.named_children():
            self.add_module(name, child)
        self._own = [name for name, _ in (*layer.named_parameters(), *layer.named_buffers())]
        self._layer = (layer,)  # in a tuple, so that it is not a part with names of its own
        self.bank = torch.nn.ParameterList(sets).requires_grad_(bool(needs_grad))
        self.route: list[int] | None = None

    @property
    def weight(self) -> Tensor:
        """The mean of all sets."""
        return self.filters(None)

    def filters(self, number: int | None) -> Tensor:
        """Return a set `[O, C, k, k]`, or the mean of all."""
        return torch.stack(list(self.bank)).mean(0) if number is None else self.bank[number]

    def forward(self, x: Tensor, w: Tensor, **kwargs: Any) -> Tensor:
        """Run the layer once per set that is in use, each time on the samples that take it."""
        if self.route is None:
            return self._run(None, x, w, **kwargs)
        sizes = sorted(Counter(self.route).items())
        order = torch.tensor(self.route, device=x.device).argsort()
        parts = [torch.split(t[order], [size for _, size in sizes]) for t in (x, w)]
        results = []
        for (number, _), own_x, own_w in zip(sizes, *parts, strict=True):
            results.append(self._run(number, own_x, own_w, **kwargs))
        return torch.cat(results)[order.argsort()]

    def _run(self, number: int | None, x: Tensor, w: Tensor, **kwargs: Any) -> Tensor:
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        state = {"weight": self.filters(number), **{name: tensors[name] for name in self._own}}
        result: Tensor = functional_call(self._layer[0], state, (x, w), kwargs, tie_weights=False)
        return result


def candidates(G: Any) -> list[str]:
    """Return the names of the layers of `G.synthesis` that can have a bank, the latent's first."""
    modules = G.synthesis.named_modules()
    return [name for name, _ in modules if name.endswith((".conv0", ".conv1"))]


def install(
    G: Any, *, size: int, layers: Iterable[str], jitter: float | None = 0.0, seed: int = 0
) -> dict[str, Tensor]:
    """Turn the weights of some layers of a generator into banks of filter sets; return for each set
    by its name what it was before the jitter.

    `G(z, c)` then draws each sample's route with `routes_of`; `G` and `G.synthesis` take a
    `route` `[N, layers]`, or None for the mean of the sets, which is `G.synthesis`'s default.

    Args:
        G: Generator whose `init_kwargs` are its constructor's arguments; is changed.
        size: Number of sets per layer.
        layers: Some of `candidates(G)`, in their order.
        jitter: Standard deviation of what is added to a set, relative to the filter's own root
            mean square; None for sets that are drawn anew.
        seed: Seed of the jitter.
    """
    layers, origins = list(layers), {}
    if unknown := [name for name in layers if name not in candidates(G)]:
        raise ValueError(f"a bank's layers must be among G's, got {unknown[0]!r}")
    for name in layers:
        layer: Any = G.synthesis.get_submodule(name)
        weight = layer.weight
        rng = torch.Generator().manual_seed(seed_of(seed, KEY, name))
        sets = [_jittered(weight, jitter, rng) for _ in range(size)]
        origins.update({f"synthesis.{name}.bank.{i}": weight.detach() for i in range(size)})
        G.synthesis.set_submodule(name, BankedLayer(layer, sets))
    G.init_kwargs = {**G.init_kwargs, KEY: {"size": size, "layers": layers}}
    G.register_forward_pre_hook(_draw_route, with_kwargs=True)
    G.synthesis.register_forward_pre_hook(_set_route, with_kwargs=True)
    return origins


@torch.no_grad()
def _jittered(weight: Tensor, jitter: float | None, rng: torch.Generator) -> Tensor:
    if jitter == 0:
        return weight.clone()
    noise = torch.empty_like(weight, device="cpu").normal_(generator=rng).to(weight.device)
    return noise if jitter is None else weight + noise * weight.square().mean().sqrt() * jitter


def banks_of(G: Any) -> dict[str, Any] | None:
    """Return `size` and `layers` of a generator's banks, or None if it has none."""
    found: dict[str, Any] | None = getattr(G, "init_kwargs", {}).get(KEY)
    return found


def route_argument(G: Any, z: Tensor) -> dict[str, Any]:
    """Return what makes `G.synthesis` take the routes of `z`, whatever its latents `ws`."""
    if (banks := banks_of(G)) is None:
        return {}
    return {"route": routes_of(z, size=banks["size"], layers=len(banks["layers"]))}


def _draw_route(
    G: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    z = args[0] if args else kwargs["z"]
    return args, kwargs if "route" in kwargs else {**kwargs, **route_argument(G, z)}


def _set_route(
    synthesis: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    layers = [layer for layer in synthesis.modules() if isinstance(layer, BankedLayer)]
    if synthesis.training and "route" not in kwargs:
        size = len(layers[0].bank)
        raise ValueError(f"the source network has filter banks; add --bank-size={size} to train it")
    route: Tensor | None = kwargs.get("route")
    count = len(args[0])
    if route is not None and route.shape not in ((count, len(layers)), (1, len(layers))):
        want = f"[{count}, {len(layers)}], or [1, {len(layers)}]"
        raise ValueError(f"route must have shape {want}, got {list(route.shape)}")
    for index, layer in enumerate(layers):
        layer.route = None if route is None else route[:, index].expand(count).tolist()
    return args, {key: value for key, value in kwargs.items() if key != "route"}


def parse_route(text: str, G: Any) -> Tensor | None:
    """Return the route `[1, layers]` that a user wrote as `3,1,4`, or None for `mean`."""
    if (banks := banks_of(G)) is None:
        raise ValueError(f"--route={text}: the network has no filter banks; drop it")
    if text == "mean":
        return None
    size, count = banks["size"], len(banks["layers"])
    numbers = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(numbers) != count or text.count(",") != count - 1 or max(numbers) >= size:
        raise ValueError(
            f"--route={text}: give {count} numbers from 0 to {size - 1}, one for each bank, or mean"
        )
    return torch.tensor([numbers])


def without_banks(G: Any, route: Tensor | None) -> Any:
    """Return the ordinary generator of one route `[1, layers]`, or of the mean of the sets."""
    banks = banks_of(G)
    assert banks is not None
    state = {name: value for name, value in G.state_dict().items() if ".bank." not in name}
    for index, name in enumerate(banks["layers"]):
        taken = None if route is None else int(route[0, index])
        state[f"synthesis.{name}.weight"] = G.synthesis.get_submodule(name).filters(taken)
    plain = type(G)(**{key: value for key, value in G.init_kwargs.items() if key != KEY})
    plain.load_state_dict(state)
    return plain.train(G.training).requires_grad_(False)
