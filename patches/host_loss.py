"""The project's loss and plugins in the place of the host's loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from stylegan2_fewshot import Plugin, Plugins, Run, distributed
from stylegan2_fewshot.loss import StyleGAN2Loss

# What hosts say to their own losses: about their augmentation, about speed, and stylegan3's blur.
_OURS = ("before_step", "after_optimizer")  # hooks of the loop, not of the loss
_OF_NO_EFFECT = ("augment_pipe", "with_dataaug", "pl_no_weight_grad", "blur_init_sigma")


class HostLoss(StyleGAN2Loss):
    """What the host constructs in place of its own loss, with the arguments that it has for it.

    Args:
        device: Where the networks are.
        D: The discriminator.
        plugins: Constructor arguments by name.
        G: The generator (stylegan3), or
        G_mapping: its first part, and
        G_synthesis: its second one.
        settings: Arguments of `stylegan2_fewshot.loss.StyleGAN2Loss`.
    """

    def __init__(
        self,
        device: torch.device,
        D: Callable[..., Tensor],
        plugins: Mapping[str, Mapping[str, Any]],
        G: Any = None,
        G_mapping: Callable[..., Tensor] | None = None,
        G_synthesis: Callable[..., Tensor] | None = None,
        **settings: Any,
    ) -> None:
        for name in _OF_NO_EFFECT:
            settings.pop(name, None)
        mapping = G_mapping or _updating_as_before(G.mapping)
        chosen = Plugins.create(plugins)
        super().__init__(device, mapping, G_synthesis or G.synthesis, D, chosen, **settings)
        self.batch_size = 0
        self._fixed: dict[str, list[torch.nn.Parameter]] = {"G": [], "D": []}
        self._is_open = False  # D has been trained in an iteration that has not ended

    def set_up(self, run: Run) -> None:
        """Set the plugins up, and note what they leave untrained.

        Raises:
            ValueError: A plugin changes the networks, of which the host has already made G_ema,
                or leaves none of their parameters to train.
        """
        self.batch_size = run.batch_size
        for name, plugin in self.plugins.items():
            if any(getattr(type(plugin), hook) is not getattr(Plugin, hook) for hook in _OURS):
                raise ValueError(
                    f"{name}: this method takes part in the step of the optimizer, where a "
                    "checkout's loop lets nobody in; use our own train.py"
                )
            if plugin.rehearsal:
                raise ValueError(
                    f"{name}: a rehearsal is not possible in a checkout; use our own train.py"
                )
        nets = {"G": run.G, "D": run.D}
        before = _parts(nets)
        self.plugins.setup(run)
        if _parts(nets) != before:
            raise ValueError(
                f"{', '.join(self.plugins)}: one of these methods changes the networks, which is "
                "not possible in a checkout, whose loop has built on them; use our own train.py"
            )
        distributed.broadcast_(self.plugins.state_dict().values())
        for net, module in nets.items():
            named = list(module.named_parameters())
            self._fixed[net] = [p for name, p in named if not self.plugins.trainable(net, name)]
            if len(self._fixed[net]) == len(named):
                raise ValueError(f"no parameter of {net} is left to train; freeze fewer layers")

    def accumulate_gradients(
        self,
        phase: str,
        real_img: Tensor,
        real_c: Tensor,
        gen_z: Tensor,
        gen_c: Tensor,
        sync: bool = True,
        gain: float = 1,
        cur_nimg: int | None = None,
    ) -> None:
        """Add the gradients of one phase; stylegan3 says `cur_nimg` and leaves `sync` out."""
        if phase[0] == "G" and self._is_open:
            raise RuntimeError("this checkout's loop does not tell where an iteration ends")
        self._is_open = phase[0] == "D"
        super().accumulate_gradients(phase, real_img, real_c, gen_z, gen_c, sync, gain)
        # The host sets requires_grad on all parameters, and DistributedDataParallel counts on each
        # having a gradient; Adam leaves alone what has none.
        for param in self._fixed[phase[0]]:
            param.grad = None

    def end_iteration(self) -> None:
        """Tell the plugins that both optimizers are done."""
        self.plugins.after_step(self.cur_nimg)
        self.cur_nimg += self.batch_size
        self._is_open = False


def _updating_as_before(mapping: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Call stylegan3's mapping, which updates its running mean only on request."""

    def call(z: Tensor, c: Tensor, skip_w_avg_update: bool = False) -> Tensor:
        return mapping(z, c, update_emas=not skip_w_avg_update)

    return call


def _parts(nets: Mapping[str, torch.nn.Module]) -> list[tuple[str, int]]:
    """Return the names and identities of all that networks consist of."""
    parts = [
        part
        for net in nets.values()
        for part in (*net.named_modules(), *net.named_parameters(), *net.named_buffers())
    ]
    return [(name, id(part)) for name, part in parts]
