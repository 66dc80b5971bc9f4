"""The project's loss and plugins in the place of the host's loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from stylegan2_fewshot import Plugin, Plugins, Run, Step
from stylegan2_fewshot.loss import StyleGAN2Loss
from stylegan2_fewshot.plugin import find

_OF_NO_EFFECT = ("pl_no_weight_grad", "blur_fade_kimg", "with_dataaug")  # speed; or another's part


class HostPipe(Plugin):
    """The host's own augmentation pipe, in its place among the plugins."""

    def __init__(self, pipe: torch.nn.Module) -> None:
        super().__init__()
        self.pipe = pipe

    def augment(self, img: Tensor, step: Step) -> Tensor:
        augmented: Tensor = self.pipe(img)
        return augmented


class HostLoss(StyleGAN2Loss):
    """What the host constructs in place of its own loss, with the arguments that it has for it.

    Args:
        device: Where the networks are.
        D: The discriminator.
        plugins: Constructor arguments by name; None stands for the host's own augmentation.
        G: The generator (stylegan3), or
        G_mapping: its first part, and
        G_synthesis: its second one.
        augment_pipe: The host's own augmentation, if it is on.
        settings: Arguments of `stylegan2_fewshot.loss.StyleGAN2Loss`.
    """

    def __init__(
        self,
        device: torch.device,
        D: Callable[..., Tensor],
        plugins: Mapping[str, Mapping[str, Any] | None],
        G: Any = None,
        G_mapping: Callable[..., Tensor] | None = None,
        G_synthesis: Callable[..., Tensor] | None = None,
        augment_pipe: torch.nn.Module | None = None,
        **settings: Any,
    ) -> None:
        if settings.pop("blur_init_sigma", 0):
            raise ValueError("blur_init_sigma: only --cfg=stylegan2 can be trained")
        for name in _OF_NO_EFFECT:
            settings.pop(name, None)
        mapping = G_mapping or _updating_as_before(G.mapping)
        chosen = Plugins(
            {
                name: HostPipe(augment_pipe) if options is None else find(name)(**options)
                for name, options in plugins.items()
                if options is not None or augment_pipe is not None
            }
        )
        super().__init__(device, mapping, G_synthesis or G.synthesis, D, chosen, **settings)
        self.batch_size = 0
        self._fixed: dict[str, list[torch.nn.Parameter]] = {"G": [], "D": []}
        self._is_open = False  # D has been trained in an iteration that has not ended

    def set_up(self, run: Run) -> None:
        """Set the plugins up, and note what they leave untrained.

        Raises:
            ValueError: A plugin changes the parameters, whose optimizers and averages are the
                host's, or leaves none to train.
        """
        before = _parameters(run)
        self.batch_size = run.batch_size
        self.plugins.setup(run)
        if _parameters(run) != before:
            names = ", ".join(self.plugins)
            raise ValueError(
                f"{names}: one of them adds parameters to the networks, which the checkout's loop "
                "cannot take; train with this project's own train.py"
            )
        for net, named in before.items():
            fixed = [p for name, p in named.items() if not self.plugins.trainable(net, name)]
            if len(fixed) == len(named):
                raise ValueError(f"no parameter of {net} is left to train; freeze fewer layers")
            self._fixed[net] = fixed

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
        self.plugins.after_step(Step("end", self.cur_nimg))
        self.cur_nimg += self.batch_size
        self._is_open = False


def _updating_as_before(mapping: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Call stylegan3's mapping, which updates its running mean only on request."""

    def call(z: Tensor, c: Tensor, skip_w_avg_update: bool = False) -> Tensor:
        return mapping(z, c, update_emas=not skip_w_avg_update)

    return call


def _parameters(run: Run) -> dict[str, dict[str, torch.nn.Parameter]]:
    return {"G": dict(run.G.named_parameters()), "D": dict(run.D.named_parameters())}
