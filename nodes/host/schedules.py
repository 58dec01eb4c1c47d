"""Which of the host's schedulers is which of the core's spacings.

On the 1000 noise levels of a Stable Diffusion: ``karras`` is the same formula; ``simple`` takes the levels of
``trailing``, exactly where the steps divide 1000 and else at most one level aside; ``ddim_uniform`` takes those of
``leading`` where the steps divide 1000 (else the host makes a step more, which is refused) and ends at 0. Every other
scheduler is "model", the model's own spacing as the node says it: ``normal`` is evenly spaced with both ends included,
``sgm_uniform`` is within one level of ``trailing``.
"""

from collections.abc import Mapping
from typing import Any

import comfy.samplers
from torch import Tensor

from reneg_core.embedding import NegativeEmbedding
from reneg_core.sampling import Sampling

SCHEDULERS = {"leading": "ddim_uniform", "trailing": "simple", "karras": "karras"}
SPACINGS = {scheduler: spacing for spacing, scheduler in SCHEDULERS.items()}


def spacing_of(scheduler: str) -> str:
    """The core's word for a scheduler; "model" for one that has none."""
    return SPACINGS.get(scheduler, "model")


def scheduler_of(sampling: Sampling, own: str = "") -> str:
    """The host's word for the spacing of ``sampling``; ``own`` for "model"."""
    return SCHEDULERS.get(sampling.spacing, own)


def levels(model_sampling: Any, sampling: Sampling, own: str) -> Tensor:
    """The host's noise levels ``[steps+1]`` for ``sampling``, float32 on the CPU.

    own: the scheduler of the spacing "model". Errors: ValueError where the scheduler makes another number of steps.
    """
    name, steps = scheduler_of(sampling, own), sampling.steps
    found = comfy.samplers.calculate_sigmas(model_sampling, name, steps).float().cpu()
    if len(found) != steps + 1:
        raise ValueError(
            f"The scheduler {name} gives {len(found) - 1} steps for {steps}, expected {steps}. "
            "Try a number of steps that divides 1000, or normal, simple or karras."
        )
    return found


def in_words(sampling: Sampling) -> str:
    """The sampling in the core's words, and the sampler and scheduler that make it in KSampler."""
    sampler = "euler" if sampling.solver == "ddim" else sampling.solver
    chosen = " and ".join(filter(None, [sampler, scheduler_of(sampling)]))
    return f"{sampling.describe()} (in KSampler: {chosen})"


def learned_for(embedding: NegativeEmbedding) -> str:
    """What the embedding was learned for, or that its file does not say; nothing for one that was not learned.

    Errors: ValueError for a record that cannot be read.
    """
    origin, sampling = embedding.provenance, embedding.sampling
    if sampling:
        training = origin.notes.get("training")
        varied = isinstance(training, Mapping) and training.get("jitter")
        return f"learned for {in_words(sampling)}" + (", with samplers and guidance around it" if varied else "")
    if origin.source == "conditioning":
        return ""
    scale = f"; it was learned at guidance scale {origin.guidance_scale:g}" if origin.guidance_scale else ""
    return f"the file does not say for which sampler, steps and guidance it was learned{scale}"
