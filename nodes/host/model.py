"""ComfyUI's MODEL, CLIP and VAE as the core's :class:`~reneg_core.model.DiffusionModel`.

Work runs inside the host's own sampling call, so that patches, hooks, wrappers and memory management apply as they do
for every sampler; only the loop in between is the core's.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import reduce
from typing import Any, TypeVar

import comfy.model_management as memory
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn

from reneg_core.digests import DIGEST, digest_of, sha256_of
from reneg_core.model import Branch, Conditioning, DiffusionModel, concat
from reneg_core.sampling import NATIVE, Sampling, Size

from .checks import check_loaded, check_mask_is_read, check_trainable, explained, needs_cloning
from .feedback import Passing, stoppable
from .probing import resident_clone, training_flag
from .schedules import levels
from .tensors import CloningCheckpoints, blocks_of, frozen, repair, repair_attributes
from .text import encode, encode_alone, family_of

T = TypeVar("T")
CACHED_PROMPTS = 512
PROBE = "a photograph of 7 red foxes, snow; watercolour"
PICTURE = Size(512, 512)
GRADIENT_MEMORY = 4  # a pass with gradient keeps about this many times what the host estimates for one without


class HostModel(DiffusionModel):
    """A text-to-image MODEL with its CLIP and VAE.

    scheduler: the host's, for the spacing "model"; the other spacings name theirs (see :mod:`schedules`).
    companions: patchers of other networks the work needs (rewards): they are loaded and repaired together with the
    model. size: of a picture in pixels where the work does not say it. batch: the largest batch of a pass with
    gradient, for the host's memory estimate. passing: a context around every use of a network of the host, deciding
    what the stop button does; by default it raises the host's interruption.
    """

    def __init__(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        *,
        scheduler: str = "normal",
        companions: Sequence[Any] = (),
        size: Size = PICTURE,
        batch: int = 1,
        name: str = "",
        passing: Passing = stoppable,
    ) -> None:
        check_trainable(model, vae)
        self._patcher, self._clip, self._vae = _private_clone(model), clip, vae
        self._companions, self._scheduler = list(companions), scheduler
        self._size, self._batch, self._passing = size, batch, passing
        self._checkpoints = CloningCheckpoints(passing)
        self._always_checkpoint = needs_cloning(model)
        self._prompts: OrderedDict[str, Conditioning] = OrderedDict()
        self._guider: Any = None
        self.device = model.load_device
        self.family = family_of(clip)
        null, self._null_extra = encode(clip, "")
        self.width, self.max_tokens = null.tokens.shape[2], None
        self.name = name or f"{type(model.model.model_config).__name__} (scheduler {scheduler})"
        self.dtype = model.model.manual_cast_dtype or model.model.get_dtype()

    def run(self, work: Callable[[DiffusionModel], T]) -> T:
        """Call ``work`` inside the host's sampling with everything loaded, ordinary and frozen; restore all of it."""
        if self._guider is not None:
            return work(self)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(training_flag())
            stack.callback(self._checkpoints.restore)
            stack.enter_context(explained(self._patcher))
            self._load()
            stack.enter_context(frozen(*self._networks()))
            if self._always_checkpoint:
                self.checkpointing(True)
            return self._inside_sampling(work)

    def _networks(self) -> list[nn.Module]:
        return [self._patcher.model, self._vae.first_stage_model, *(patcher.model for patcher in self._companions)]

    def _load(self) -> None:
        need = self._patcher.model.memory_required([self._batch, *self._latent_shape()]) * GRADIENT_MEMORY
        patchers = [self._patcher, self._vae.patcher, *self._companions]
        memory.load_models_gpu(patchers, memory_required=need, force_full_load=True)
        check_loaded(self._patcher)
        for network in self._networks():
            repair(network, self.device)
        repair_attributes(self._patcher.model.latent_format)

    def _inside_sampling(self, work: Callable[[DiffusionModel], T]) -> T:
        caller = _Caller(self, work)
        guider = comfy.samplers.CFGGuider(self._patcher)
        tokens = encode(self._clip, "")[0].tokens
        guider.set_conds([[tokens, dict(self._null_extra)]], [[tokens, dict(self._null_extra)]])
        latent = torch.zeros(1, *self._latent_shape())
        sigmas = self.sigmas(Sampling(steps=2))
        try:
            guider.sample(torch.zeros_like(latent), latent, caller, sigmas, disable_pbar=True, seed=0)
        finally:
            self._guider = None
        return caller.result

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of each prompt; prompts of unequal token counts are repeated to a common length where the host
        does so too, and refused otherwise."""
        parts = [self._encode_one(prompt) for prompt in prompts]
        longest = max(part.tokens.shape[1] for part in parts)
        return reduce(concat, (_repeated(part, longest) for part in parts))

    def _encode_one(self, prompt: str) -> Conditioning:
        if prompt in self._prompts:
            self._prompts.move_to_end(prompt)
        else:
            self._prompts[prompt] = self._encode_needed(prompt)
            if len(self._prompts) > CACHED_PROMPTS:
                self._prompts.popitem(last=False)
        return self._prompts[prompt].to(self.device)

    def _encode_needed(self, prompt: str) -> Conditioning:
        with self._passing():
            part = encode_alone(self._clip, prompt).to("cpu")
        return part if _uses_pooled(self._patcher.model) else Conditioning(part.tokens, part.mask)

    def denoise(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning, branches: Sequence[Branch] = (Branch.POSITIVE,)
    ) -> Tensor:
        """One conditional pass of each branch through the host's own batching, patches and wrappers.

        They are told the branches as KSampler tells them: ``cond_or_uncond`` is ``[1, 0]`` for both branches of the
        same ``x`` (one batch, the negative's rows first, if memory allows), ``[0]`` or ``[1]`` for one alone.
        """
        level = sigma.detach().to(x.device, torch.float32, copy=True).reshape(-1).expand(len(x))
        states, sigmas = x.chunk(len(branches)), level.chunk(len(branches))
        rows = len(states[0])
        conditions = [
            self._condition(state, conditioning[i * rows : (i + 1) * rows], branch)
            for i, (state, branch) in enumerate(zip(states, branches, strict=True))
        ]
        if _one_state(states, sigmas, branches):
            found = self._pass(states[0], sigmas[0], dict(zip(branches, conditions, strict=True)))
            return torch.cat([found[branch] for branch in branches])
        parts = zip(states, sigmas, branches, conditions, strict=True)
        return torch.cat([self._pass(state, at, {branch: one})[branch] for state, at, branch, one in parts])

    def _pass(self, x: Tensor, level: Tensor, conditions: dict[Branch, dict[str, Any]]) -> list[Tensor]:
        """Clean estimates of ``x`` by branch number; a branch without a condition is not run."""
        wanted = [[conditions[branch]] if branch in conditions else None for branch in Branch]
        with self._passing():
            return comfy.samplers.calc_cond_batch(self._active().inner_model, wanted, x, level, self._options)

    def _condition(self, x: Tensor, conditioning: Conditioning, branch: Branch) -> dict[str, Any]:
        """The processed form of a conditioning that the host's batching takes."""
        extra = {k: v for k, v in self._null_extra.items() if k not in ("pooled_output", "attention_mask")}
        extra["cross_attn"] = conditioning.tokens.to(x.device)
        if conditioning.pooled is not None:
            extra["pooled_output"] = conditioning.pooled.to(x.device)
        if conditioning.mask is not None:
            extra["attention_mask"] = conditioning.mask.to(x.device)
        if conditioning.pooled is not None and not _uses_pooled(self._patcher.model):
            raise ValueError(f"Got a pooled vector, which {self.name} does not read. Try an embedding made for it.")
        encoded = self._active().inner_model.extra_conds(
            **extra,
            noise=x,
            device=x.device,
            width=x.shape[-1] * self._factor,
            height=x.shape[-2] * self._factor,
            prompt_type=branch.name.lower(),
            latent_image=torch.zeros_like(x),
            seed=0,
        )
        check_mask_is_read(self.name, conditioning.mask, encoded)
        return {"model_conds": encoded, "uuid": self._uuids[branch]}

    def sigmas(self, sampling: Sampling) -> Tensor:
        """The host's noise levels, float32 on the CPU; patches that ask for the schedule are told of them too."""
        found = levels(self._patcher.get_model_object("model_sampling"), sampling, self._scheduler)
        if self._guider is not None:
            self._options["transformer_options"]["sample_sigmas"] = found.to(self.device)
        return found

    def noise(self, seeds: Sequence[int], size: Size = NATIVE) -> Tensor:
        """Standard normal latents, one private generator per row, drawn on the CPU."""
        shape = self._latent_shape(size)
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(self.device)

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.to(noise.device)
        return self._sampling.noise_scaling(level, noise, torch.zeros_like(noise), True)

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._sampling.inverse_noise_scaling(sigma.to(x.device), x)

    def decode(self, latents: Tensor, frames: int = 0) -> Tensor:
        """The VAE's network itself: the host's own decode has no gradient and tiles when memory is short."""
        vae = self._vae
        raw = self._active().inner_model.process_latent_out(latents).to(vae.vae_dtype)
        with self._passing():
            return vae.process_output(vae.first_stage_model.decode(raw).float()).clamp(0, 1)

    def checkpointing(self, enabled: bool) -> None:
        """Recompute the denoiser's and the decoder's blocks in the backward pass."""
        if not enabled and not self._always_checkpoint:
            self._checkpoints.restore()
        elif enabled:
            decoder = getattr(self._vae.first_stage_model, "decoder", self._vae.first_stage_model)
            for block in [*blocks_of(self._patcher.model.diffusion_model), *blocks_of(decoder)]:
                self._checkpoints.wrap(block)

    def digest(self) -> str:
        """SHA-256 over the denoiser's weights as they are loaded, LoRAs included."""
        return sha256_of(self._patcher.model.diffusion_model.state_dict())

    def contents(self) -> dict[str, str]:
        """See :class:`DiffusionModel`; the text encoder by what it makes of a prompt, which counts its patches in."""
        part = self._encode_one(PROBE)
        tensors = {"tokens": part.tokens, "mask": part.mask, "pooled": part.pooled}
        return {
            "precision": str(self.dtype).removeprefix("torch."),
            "denoiser": DIGEST + self.digest(),
            "text encoder": digest_of({name: t for name, t in tensors.items() if t is not None}),
            "VAE": digest_of(self._vae.first_stage_model.state_dict()),
        }

    @property
    def _sampling(self) -> Any:
        return self._active().inner_model.model_sampling

    @property
    def _factor(self) -> int:
        ratio = self._vae.downscale_ratio
        return ratio if isinstance(ratio, int) else 8

    def _latent_shape(self, size: Size = NATIVE) -> tuple[int, int, int]:
        sides = (size.height or self._size.height, size.width or self._size.width)
        if any(side < self._factor or side % self._factor for side in sides):
            raise ValueError(f"Got a picture of {sides[1]}x{sides[0]} pixels, expected multiples of {self._factor}.")
        channels = self._patcher.model.latent_format.latent_channels
        return (channels, sides[0] // self._factor, sides[1] // self._factor)

    def _active(self) -> Any:
        if self._guider is None:
            raise RuntimeError("The host's model works only inside run(): call model.run(lambda model: ...).")
        return self._guider

    def _enter(self, guider: Any, options: dict[str, Any]) -> None:
        self._guider, self._options = guider, options
        self._uuids = {branch: guider.conds[branch.name.lower()][0]["uuid"] for branch in Branch}
        repair(guider.inner_model, self.device)


class _Caller(comfy.samplers.Sampler):
    """A sampler that does the core's work instead of stepping, and hands the empty latent back."""

    def __init__(self, model: HostModel, work: Callable[[DiffusionModel], Any]) -> None:
        self.model, self.work, self.result = model, work, None

    def sample(self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], *rest: Any, **options: Any) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            self.model._enter(model_wrap, extra_args["model_options"])
            self.result = self.work(self.model)
        return torch.zeros(1, *self.model._latent_shape(), device=self.model.device)


def _private_clone(model: Any) -> Any:
    """A clone with resident weights and an attention that has a gradient; the user's MODEL is left alone."""
    clone = resident_clone(model)
    options = clone.model_options.setdefault("transformer_options", {})
    options["optimized_attention_override"] = lambda original, *args, **kwargs: attention_pytorch(*args, **kwargs)
    return clone


def _uses_pooled(network: Any) -> bool:
    """Whether the architecture reads a pooled vector (its ADM input, or a vector input of its transformer)."""
    return network.adm_channels > 0 or "vec_in_dim" in network.model_config.unet_config


def _one_state(states: Sequence[Tensor], sigmas: Sequence[Tensor], branches: Sequence[Branch]) -> bool:
    """Whether every part is another branch of the same state, which the host takes in one batch."""
    same = (
        torch.equal(states[0], state) and torch.equal(sigmas[0], at) for state, at in zip(states, sigmas, strict=True)
    )
    return len(set(branches)) == len(branches) and all(same)


def _repeated(part: Conditioning, length: int) -> Conditioning:
    """Repeat tokens to ``length``: neutral for cross-attention without positions, which is all that repeats here."""
    times, rest = divmod(length, part.tokens.shape[1])
    if rest or (times > 1 and part.mask is not None):
        raise ValueError(
            f"Got prompts of {part.tokens.shape[1]} and {length} tokens in one batch, which this model cannot join. "
            "Try prompts of similar length, or a micro-batch of 1."
        )
    return part if times == 1 else Conditioning(part.tokens.repeat(1, times, 1), part.mask, part.pooled)
