"""ComfyUI's MODEL, CLIP and VAE as the core's :class:`~reneg_core.model.DiffusionModel`.

Work runs inside the host's own sampling call, so that patches, hooks, wrappers and memory management apply as they do
for every sampler; only the loop in between is the core's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import comfy.model_management as memory
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import TimestepEmbedSequential
from torch import Tensor, nn

from reneg_core.digests import DIGEST, digest_of, sha256_of
from reneg_core.model import Branch, Conditioning, DiffusionModel, TunableModel
from reneg_core.sampling import NATIVE, Sampling, Size
from reneg_core.texts import Coming, Texts

from .attention import guided_away, require_cross_attention
from .checks import check_loaded, check_trainable, explained
from .families import check_encoder, facts_of, family_of_model, name_of
from .feedback import Passing, stoppable
from .latents import Latents
from .probing import keeps_state, resident_clone, training_flag
from .recompute import Checkpoints, blocks_of
from .rows import Processed, attended, groups, joined, merged
from .schedules import levels
from .tensors import frozen, repair, repair_attributes
from .text import encode_alone, family_of
from .tuning import TunedText

T = TypeVar("T")
PROBE = "a photograph of 7 red foxes, snow; watercolour"
PICTURE = Size(512, 512)
GRADIENT_MEMORY = 4  # a pass with gradient keeps about this many times what the host estimates for one without


class HostModel(TunableModel):
    """A MODEL from text to pictures or clips with its CLIP and VAE.

    scheduler: the host's, for the spacing "model"; the other spacings name theirs (see :mod:`schedules`).
    companions: patchers of other networks the work needs (rewards): they are loaded and repaired together with the
    model. size: in pixels, and of a clip in frames, where the work does not say it. batch: the largest batch of a pass
    with gradient, for the host's memory estimate. passing: a context around every use of a network of the host,
    deciding what the stop button does; by default it raises the host's interruption.
    Errors: ValueError for architectures that are not among :data:`.families.FAMILIES`, and for parts of another one.
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
        self._family, encoded = family_of_model(model), family_of(clip)
        check_encoder(model, self._family, encoded)
        self.family = self._family.convention or encoded
        self._patcher, self._clip, self._vae = _private_clone(model), clip, vae
        self._companions, self._scheduler = list(companions), scheduler
        self._frames = size.frames or facts_of(model).frames
        self._latents = Latents(model, vae, replace(size, frames=self._frames))
        self._batch, self._passing = batch, passing
        self._checkpoints = Checkpoints(passing)
        self._texts = Texts(self._encode_one, self._beside_the_model)
        self._guider: Any = None
        self._tuned: TunedText | None = None
        self.device = model.load_device
        self._null, length = encode_alone(clip, ""), self._family.length
        self._padding = encode_alone(clip, "", length).tokens if length else None
        self.width, self.max_tokens = self._null.tokens.shape[2], None
        clips = f", {self._frames} frames" if self._frames > 1 else ""
        self.name = name or f"{name_of(model)} (scheduler {scheduler}{clips})"
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
            stack.callback(self._forget_tuning)
            stack.enter_context(explained(self._patcher))
            self._load()
            stack.enter_context(frozen(*self._networks()))
            if not self._family.plain:
                self.checkpointing(True)
            return self._inside_sampling(work)

    def weights(self) -> list[Tensor]:
        """Every weight of the networks that a pass goes through, companions included."""
        return [parameter for network in self._networks() for parameter in network.parameters()]

    def bytes_of_pass(self, pictures: int) -> int:
        """What a guided pass of so many pictures needs besides the weights, by the host's own estimate."""
        return int(self._patcher.model.memory_required([2 * pictures, *self._latents.shape(NATIVE)]))

    def _networks(self) -> list[nn.Module]:
        return [self._patcher.model, self._vae.first_stage_model, *(patcher.model for patcher in self._companions)]

    def _load(self) -> None:
        need = self._patcher.model.memory_required([self._batch, *self._latents.shape(NATIVE)]) * GRADIENT_MEMORY
        patchers = [self._patcher, self._vae.patcher, *self._companions]
        memory.load_models_gpu(patchers, memory_required=need, force_full_load=True)
        check_loaded(self._patcher)
        for network in self._networks():
            repair(network, self.device)
        repair_attributes(self._patcher.model.latent_format)

    def _inside_sampling(self, work: Callable[[DiffusionModel], T]) -> T:
        caller = _Caller(self, work)
        guider = comfy.samplers.CFGGuider(self._patcher)
        null = {name: part for name, part in self._told(self._null).items() if name != "cross_attn"}
        guider.set_conds(*([[self._null.tokens, dict(null)]] for _ in Branch))
        latent = torch.zeros(1, *self._latents.shape(NATIVE))
        sigmas = self.sigmas(Sampling(steps=2))
        try:
            guider.sample(torch.zeros_like(latent), latent, caller, sigmas, disable_pbar=True, seed=0)
        finally:
            self._guider = None
        return caller.result

    def text_encoders(self) -> Mapping[str, nn.Module]:
        """A copy of the CLIP's, which :meth:`encode` uses from here to the end of :meth:`run`; see :class:`TunedText`.

        Errors: RuntimeError outside of it; ValueError for other encoders than CLIP's.
        """
        self._active()
        if self._tuned is None:
            with self._beside_the_model():
                self._tuned = TunedText(self._clip)
        return self._tuned.encoders

    def _forget_tuning(self) -> None:
        self._tuned = None

    def encode(self, prompts: Sequence[str], gradient: bool = False) -> Conditioning:
        """Conditioning of each prompt as the host encodes it; a mask tells it from its padding where lengths differ, or
        where the family's convention is longer than what the host encodes. gradient: see :class:`TunableModel`."""
        if self._tuned is None:
            return joined([row.to(self.device) for row in self._texts.rows(prompts)], self._padding)
        with self._passing():
            parts = [self._tuned.encode(prompt, gradient).to(self.device) for prompt in prompts]
        return joined([self._read(part) for part in parts])

    @property
    def _accelerated(self) -> bool:
        """Whether the device has a memory of its own."""
        return self.device.type != "cpu"

    def _encode_one(self, prompt: str) -> Conditioning:
        with self._passing():
            part = encode_alone(self._clip, prompt).to("cpu")
        return self._read(part)

    @contextmanager
    def _beside_the_model(self) -> Iterator[None]:
        """The host loads the CLIP and, where memory is short, sends away for it what is running: that comes back, and
        for it the host sends the CLIP away."""
        try:
            yield
        finally:
            if self._guider is not None:
                self._load()

    @contextmanager
    def foreseeing(self, coming: Coming) -> Iterator[None]:
        """See :class:`~reneg_core.model.ForeseeingModel`; on a CPU nothing is encoded ahead."""
        before = self._texts.coming
        if self._accelerated:
            self._texts.coming = coming
        try:
            yield
        finally:
            self._texts.coming = before

    def _read(self, part: Conditioning) -> Conditioning:
        """Without the pooled vector where the denoiser has no use for it."""
        return part if self._family.pooled else replace(part, pooled=None)

    def denoise(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning, branches: Sequence[Branch] = (Branch.POSITIVE,)
    ) -> Tensor:
        """One conditional pass of each branch through the host's own batching, patches and wrappers.

        They are told the branches as KSampler tells them: ``cond_or_uncond`` is ``[1, 0]`` for both branches of the
        same ``x`` (one batch, the negative's rows first, if memory allows), ``[0]`` or ``[1]`` for one alone. Rows that
        the host does not pass together, of other lengths for example, are passed one after the other.
        """
        level = _levels(sigma, x)
        states, sigmas, texts = x.chunk(len(branches)), level.chunk(len(branches)), _chunks(conditioning, len(branches))
        if _one_state(states, sigmas, branches):
            found = self._passes(states[0], sigmas[0], dict(zip(branches, texts, strict=True)))
            return torch.cat([found[branch] for branch in branches])
        parts = zip(states, sigmas, branches, texts, strict=True)
        return torch.cat([self._passes(state, at, {branch: text})[branch] for state, at, branch, text in parts])

    def attended(
        self, x: Tensor, sigma: Tensor, positive: Conditioning, negative: Conditioning, strength: float
    ) -> Tensor:
        """Clean estimate of one pass of the positive, told to the host as that, whose cross-attentions are guided away
        from the negative's tokens by ``strength``; see :func:`reneg_core.guidance.attend`. Differentiable in both; a
        pooled vector of the negative has no part in it. Errors: ValueError for models without cross-attention."""
        require_cross_attention(self._patcher)
        texts = {Branch.POSITIVE: positive.expand(len(x)), Branch.NEGATIVE: negative.expand(len(x))}
        return self._passes(x, _levels(sigma, x), texts, strength)[Branch.POSITIVE]

    def _passes(
        self, x: Tensor, level: Tensor, texts: dict[Branch, Conditioning], attention: float | None = None
    ) -> dict[Branch, Tensor]:
        """Clean estimates of ``x`` by branch; attention: the positive's alone, guided by so much."""
        rows = [
            [self._processed(x[[i]], text[i : i + 1], branch) for branch, text in texts.items()] for i in range(len(x))
        ]
        found: dict[Branch, list[Tensor]] = {}
        places = groups(rows)
        for group in places:
            conditions = {
                branch: {"model_conds": merged([rows[i][number] for i in group]), "uuid": self._uuids[branch]}
                for number, branch in enumerate(texts)
            }
            for branch, estimate in self._pass(x[group], level[group], conditions, attention).items():
                found.setdefault(branch, []).append(estimate)
        order = torch.tensor([i for group in places for i in group]).argsort()
        return {branch: parts[0] if len(parts) == 1 else torch.cat(parts)[order] for branch, parts in found.items()}

    def _pass(
        self, x: Tensor, level: Tensor, conditions: dict[Branch, dict[str, Any]], attention: float | None
    ) -> dict[Branch, Tensor]:
        """Clean estimates of one batch; a branch without a condition is not run."""
        options = self._options
        if attention is not None:
            negative = conditions.pop(Branch.NEGATIVE)["model_conds"]["c_crossattn"].cond
            options = guided_away(options, negative, attention)
        wanted = [[conditions[branch]] if branch in conditions else None for branch in Branch]
        with self._passing():
            found = comfy.samplers.calc_cond_batch(self._active().inner_model, wanted, x, level, options)
        return {branch: found[branch] for branch in conditions}

    def _processed(self, x: Tensor, row: Conditioning, branch: Branch) -> Processed:
        """What the host's architecture makes of one row for one branch."""
        self._check_pooled(row)
        return self._active().inner_model.extra_conds(
            **self._told(attended(row, self.name).to(x.device)),
            noise=x,
            device=x.device,
            width=x.shape[-1] * self._latents.factor,
            height=x.shape[-2] * self._latents.factor,
            prompt_type=branch.name.lower(),
            latent_image=torch.zeros_like(x),
            seed=0,
        )

    def _told(self, part: Conditioning) -> dict[str, Any]:
        """One row, all of it attended to, under the host's names: a pooled vector or None, a mask if one is needed."""
        told = {"cross_attn": part.tokens, "pooled_output": part.pooled}
        if self._family.mask:
            told["attention_mask"] = torch.ones(part.tokens.shape[:2], dtype=torch.int64, device=part.tokens.device)
        return told

    def _check_pooled(self, row: Conditioning) -> None:
        if (row.pooled is not None) != self._family.pooled:
            got, wanted = ("no", "reads") if self._family.pooled else ("a", "does not read")
            raise ValueError(f"Got {got} pooled vector, which {self.name} {wanted}. Try an embedding made for it.")

    def sigmas(self, sampling: Sampling) -> Tensor:
        """The host's noise levels, float32 on the CPU; patches that ask for the schedule are told of them too."""
        found = levels(self._patcher.get_model_object("model_sampling"), sampling, self._scheduler)
        if self._guider is not None:
            self._options["transformer_options"]["sample_sigmas"] = found.to(self.device)
        return found

    def noise(self, seeds: Sequence[int], size: Size = NATIVE) -> Tensor:
        """Standard normal latents, one private generator per row, drawn on the CPU."""
        shape = self._latents.shape(size)
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(self.device)

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.to(noise.device)
        return self._sampling.noise_scaling(level, noise, torch.zeros_like(noise), True)

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self._sampling.inverse_noise_scaling(sigma.to(x.device), x)

    def decode(self, latents: Tensor, frames: int = 0) -> Tensor:
        """The VAE's network itself: the host's own decode has no gradient and tiles when memory is short; see
        :meth:`.latents.Latents.decode`."""
        raw = self._active().inner_model.process_latent_out(latents)
        with self._passing():
            return self._latents.decode(raw, frames)

    def pixels(self, size: Size = NATIVE, frames: int = 0) -> int:
        """See :class:`DiffusionModel`; of a clip all frames are decoded."""
        height, width = self._latents.shape(size)[-2:]
        return height * width * self._latents.factor**2 * (size.frames or self._frames)

    def checkpointing(self, enabled: bool, decoder: bool | None = None) -> None:
        """Recompute the denoiser's and the decoder's blocks in the backward pass; always where blocks change what they
        saved."""
        vae, must = self._vae.first_stage_model, not self._family.plain
        network = getattr(vae, "decoder", vae)
        self._checkpoints.restore()
        if enabled or must:
            opened = (TimestepEmbedSequential,)  # the UNets call its members, not itself
            self._recompute(blocks_of(self._patcher.model.diffusion_model, opened))
        if (must or (enabled if decoder is None else decoder)) and not keeps_state(network):
            self._recompute(blocks_of(network))

    def _recompute(self, blocks: list[nn.Module]) -> None:
        for block in blocks:
            self._checkpoints.wrap(block)

    def digest(self) -> str:
        """SHA-256 over the denoiser's weights as they are loaded, LoRAs included."""
        return sha256_of(self._patcher.model.diffusion_model.state_dict())

    def contents(self) -> dict[str, str]:
        """See :class:`DiffusionModel`; the text encoder by what it makes of a prompt, which counts its patches in."""
        [part] = self._texts.rows([PROBE])
        tensors = {"tokens": part.tokens, "mask": part.mask, "pooled": part.pooled}
        return {
            "precision": str(self.dtype).removeprefix("torch."),
            "denoiser": DIGEST + self.digest(),
            "text encoder": digest_of({name: t for name, t in tensors.items() if t is not None}),
            "VAE": digest_of(self._vae.first_stage_model.state_dict()),
            **({"frames": str(self._frames)} if len(self._latents.shape(NATIVE)) > 3 else {}),
        }

    @property
    def _sampling(self) -> Any:
        return self._active().inner_model.model_sampling

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
        return torch.zeros(1, *self.model._latents.shape(NATIVE), device=self.model.device)


def _private_clone(model: Any) -> Any:
    """A clone with resident weights and an attention that has a gradient; the user's MODEL is left alone."""
    clone = resident_clone(model)
    options = clone.model_options.setdefault("transformer_options", {})
    options["optimized_attention_override"] = lambda original, *args, **kwargs: attention_pytorch(*args, **kwargs)
    return clone


def _levels(sigma: Tensor, x: Tensor) -> Tensor:
    """A level per row of ``x``, as the host takes them."""
    return sigma.detach().to(x.device, torch.float32, copy=True).reshape(-1).expand(len(x))


def _chunks(conditioning: Conditioning, count: int) -> list[Conditioning]:
    """The rows of each branch."""
    rows = len(conditioning) // count
    return [conditioning[i * rows : (i + 1) * rows] for i in range(count)]


def _one_state(states: Sequence[Tensor], sigmas: Sequence[Tensor], branches: Sequence[Branch]) -> bool:
    """Whether every part is another branch of the same state, which the host takes in one batch."""
    same = (
        torch.equal(states[0], state) and torch.equal(sigmas[0], at) for state, at in zip(states, sigmas, strict=True)
    )
    return len(set(branches)) == len(branches) and all(same)
