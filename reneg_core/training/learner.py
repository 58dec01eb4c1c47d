"""What is being learned: its tensors, AdamW, and how far it may go. Nothing else holds them."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..model import Conditioning
from .config import LoopConfig, TrainConfig
from .state import PART_NAMES, LearnerState, clone


class Climber:
    """Climbs with AdamW. ``parameters`` are float32 tensors on the CPU, by name.

    origin: where the run began; distances are measured from it. state: where to go on from; without it, there.
    """

    def __init__(self, origin: Mapping[str, Tensor], config: LoopConfig, state: LearnerState | None = None) -> None:
        self.config, self.origin = config, clone(origin)
        begin = state.tensors if state else self.origin
        self.parameters = {name: begin[name].clone().requires_grad_() for name in self.origin}
        self.updates = state.updates if state else 0
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            maximize=True,
        )
        if self.updates:
            for name, parameter in self.parameters.items():
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.updates)),
                    "exp_avg": state.first[name].clone(),
                    "exp_avg_sq": state.second[name].clone(),
                }

    def state(self) -> LearnerState:
        """Copies of everything that the next step depends on."""
        moments = {name: self.optimizer.state[p] for name, p in self.parameters.items()} if self.updates else {}
        return LearnerState(
            clone(self.parameters),
            clone({name: moment["exp_avg"] for name, moment in moments.items()}),
            clone({name: moment["exp_avg_sq"] for name, moment in moments.items()}),
            self.updates,
        )

    def ascend(self, gradients: Mapping[str, Tensor], rate: float) -> float | None:
        """One AdamW step upwards; the gradients' norm, or None where it is not finite and nothing was done."""
        norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm().item()
        if not math.isfinite(norm):
            return None
        limit = self.config.gradient_clip
        clip = min(1.0, limit / max(norm, 1e-12)) if limit else 1.0
        for name, parameter in self.parameters.items():
            parameter.grad = (gradients[name] * clip).float()
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.updates += 1
        return norm

    def distance(self) -> float:
        """Distance from the start relative to the start's norm."""
        moved = {name: parameter.detach() - self.origin[name] for name, parameter in self.parameters.items()}
        return _norm(moved) / _norm(self.origin)


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.hypot(*(tensor.norm().item() for tensor in tensors.values()))


class Learner(Climber):
    """An embedding that climbs: tokens ``[1,L,D]`` and, where there is one, the pooled vector.

    start: the conditioning that the run began with, one row; distances and the norm limit are measured from it.
    """

    config: TrainConfig

    def __init__(self, start: Conditioning, config: TrainConfig, state: LearnerState | None = None) -> None:
        parts = {name: getattr(start, name) for name in PART_NAMES}
        super().__init__({name: part for name, part in parts.items() if part is not None}, config, state)
        self.mask = None if start.mask is None else start.mask.cpu()

    def negative(self, device: torch.device) -> Conditioning:
        """The embedding as the denoiser takes it, detached."""
        tokens, pooled = (self.parameters.get(name) for name in PART_NAMES)
        mask = None if self.mask is None else self.mask.to(device)
        return Conditioning(tokens.detach().to(device), mask, None if pooled is None else pooled.detach().to(device))

    def ascend(self, gradients: Mapping[str, Tensor], rate: float) -> float | None:
        norm = super().ascend(gradients, rate)
        if norm is not None and self.config.norm_limit:
            self._project()
        return norm

    @torch.no_grad()
    def _project(self) -> None:
        """Pull every token back into a ball around its start; the radius is in units of the mean token norm."""
        tokens, origin = self.parameters["tokens"], self.origin["tokens"]
        radius = self.config.norm_limit * origin.norm(dim=-1).mean()
        offset = tokens - origin
        tokens.copy_(origin + offset * (radius / offset.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1))

    def distance(self) -> float:
        """Distance of the tokens from the start relative to the start's norm."""
        origin = self.origin["tokens"]
        return ((self.parameters["tokens"].detach() - origin).norm() / origin.norm()).item()
