"""Settings of a text encoder's tuning; the defaults are TexForce's (arXiv 2311.15657 and its scripts)."""

from dataclasses import dataclass, field

from ..guidance import Guidance
from ..sampling import Sampling
from ..training.config import LoopConfig
from ..training.decoding import EXACT

ROUTES = ("policy", "direct")


@dataclass(frozen=True)
class TexForceConfig(LoopConfig):
    """A step samples ``batch_size`` trajectories, judges them, and moves the LoRA ``updates`` times.

    route: ``policy`` (DDPO: any reward; pictures by DDIM at eta 1) or ``direct`` (back-propagation: differentiable
    rewards; pictures by the solver of ``sampling``). rank, alpha: of the LoRA; init: a LoRA file to start from, "" =
    none; negative: what stands in the negative branch: a prompt, which goes through the tuned encoder like every other
    (""), or an embedding's file, which does not.
    Of both routes: updates: equal parts of a batch, each with an update of its own; inner_epochs: how often a batch is
    gone through; samples_per_prompt: trajectories of a prompt in a batch (1: prompts are drawn for each).
    Of the policy: window: first and one past the last step that may be learned from, None = all (ours: late steps have
    little noise, so large scores, and little say in the picture); timestep_fraction: share of these, per trajectory;
    clip_range: of the probability ratios, per latent; advantage_clip: largest advantage; statistics_buffer,
    statistics_minimum: rewards kept of each prompt, and of how many on its own mean and spread are used.
    Of the direct route: through: steps that the gradient passes through, counted from the end (0: all).
    """

    learning_rate: float = 3e-4
    sampling: Sampling = field(default_factory=lambda: Sampling(steps=50, guidance=Guidance(7.5)))
    steps: int = 40
    batch_size: int = 512
    micro_batch: int = 4
    warmup: int = 1  # 3 % of the steps
    weight_decay: float = 1e-4
    gradient_clip: float = 1.0
    validate_every: int = 5
    checkpoint_every: int = 1
    route: str = "policy"
    rank: int = 16
    alpha: float = 16.0
    init: str = ""
    negative: str = ""
    updates: int = 64
    inner_epochs: int = 1
    samples_per_prompt: int = 1
    window: tuple[int, int] | None = None
    timestep_fraction: float = 0.5
    clip_range: float = 1e-4
    advantage_clip: float = 10.0
    statistics_buffer: int = 32
    statistics_minimum: int = 16
    through: int = 1

    def faults(self) -> list[str]:
        found = super().faults()
        found += self.below(1, "rank updates inner_epochs samples_per_prompt statistics_buffer statistics_minimum")
        found += self.below(0, "through")
        if self.route not in ROUTES:
            found.append(f"route: got {self.route!r}, expected one of {', '.join(ROUTES)}.")
        elif self.route == "policy" and self.decoder not in EXACT:
            found.append(f"decoder: got {self.decoder!r}, expected the route direct with it: policy needs no gradient.")
        for name in ("alpha", "clip_range", "advantage_clip"):
            if not getattr(self, name) > 0:
                found.append(f"{name}: got {getattr(self, name)}, expected more than 0.")
        if not 0 < self.timestep_fraction <= 1:
            found.append(f"timestep_fraction: got {self.timestep_fraction}, expected more than 0 and at most 1.")
        return found or self._unequal()

    def _unequal(self) -> list[str]:
        found = []
        if self.updates > self.batch_size:
            found.append(f"updates: got {self.updates}, expected at most the batch_size {self.batch_size}.")
        if self.batch_size % self.samples_per_prompt:
            found.append(
                f"samples_per_prompt: got {self.samples_per_prompt}, expected a divisor of the batch_size "
                f"{self.batch_size}."
            )
        if self.statistics_minimum > self.statistics_buffer:
            found.append(
                f"statistics_minimum: got {self.statistics_minimum}, expected at most the statistics_buffer "
                f"{self.statistics_buffer}."
            )
        first, last = self.window or (0, self.sampling.steps)
        if not 0 <= first < last <= self.sampling.steps:
            found.append(f"window: got {first}..{last}, expected 0 <= first < last <= the steps {self.sampling.steps}.")
        if self.through > self.sampling.steps:
            found.append(f"through: got {self.through}, expected at most the sampling.steps {self.sampling.steps}.")
        return found

    @property
    def parts(self) -> list[range]:
        """The rows of a batch that each update learns from."""
        size, count = self.batch_size, self.updates
        return [range(size * i // count, size * (i + 1) // count) for i in range(count)]
