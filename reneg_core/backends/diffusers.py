"""Stable Diffusion 1.x and 2.x through diffusers: a pipeline folder, a hub id, or a single checkpoint file.

Another family (SDXL, PixArt, LTX, a flow model) is another small class that overrides what differs: how it encodes,
what its denoiser predicts, and how its latents are decoded.
"""

import hashlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..digests import DIGEST, digest_of, sha256_of
from ..embedding import family_of_width
from ..model import Branch, Conditioning, DiffusionModel
from ..settings import NATIVE, Sampling, Size
from . import grids

T = TypeVar("T")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIGMA_LIMIT = 4096.0  # where a zero-terminal-SNR schedule, whose last level is infinite, is cut


def pick_device(name: str = "auto") -> torch.device:
    """``"auto"``: CUDA, then MPS, then CPU; any other name as torch takes it. ValueError if it is not there."""
    if name != "auto":
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"Got device {name!r}, expected auto, cpu, cuda, cuda:1 or mps.") from error
        if (device.type == "cuda" and not torch.cuda.is_available()) or (
            device.type == "mps" and not torch.backends.mps.is_available()
        ):
            raise ValueError(f"Got device {name!r}, which this torch cannot use here. Try 'auto' or 'cpu'.")
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """``"auto"``: bf16 on CUDA (fp16 gradients can underflow), fp32 elsewhere; or fp32, bf16, fp16."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"Got precision {name!r}, expected one of auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def load_model(
    source: str | Path, *, device: str = "auto", dtype: str = "auto", config: str | Path | None = None
) -> "DiffusersModel":
    """Load a Stable Diffusion 1.x or 2.x model.

    source: ``"tiny"`` (the embedded world), a diffusers pipeline folder, a single ``.safetensors`` checkpoint, or a
    hub id; device and dtype: see :func:`pick_device` and :func:`pick_dtype`; config: for a single file, the pipeline
    folder or hub id that holds its configuration and tokenizer (default: the original's, from the hub cache).
    Errors: FileNotFoundError, ValueError for anything that is not such a model.
    """
    target = pick_device(device)
    precision = pick_dtype(dtype, target)
    with _quiet_loading():
        pipeline = _load_pipeline(str(source), precision, config)
    return DiffusersModel(pipeline.to(target), str(source))


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No progress bars for reading local files (downloads from a hub keep theirs), nor the warning that the option
    ``torch_dtype``, the only one that older releases know, is to be called ``dtype``."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = [(module, module.is_progress_bar_enabled()) for module in (diffusers_logging, transformers_logging)]
    for module, _ in libraries:
        module.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for module, enabled in libraries:
            if enabled:
                module.enable_progress_bar()


def _load_pipeline(source: str, dtype: torch.dtype, config: str | Path | None) -> Any:
    from diffusers import StableDiffusionPipeline

    path = _resolve(source)
    if path is not None and path.is_dir() and not (path / "model_index.json").is_file():
        raise ValueError(f"Got the folder {path} without a model_index.json, expected a diffusers pipeline folder.")
    options: dict[str, Any] = {"torch_dtype": dtype, "safety_checker": None, "requires_safety_checker": False}
    single = path is not None and path.is_file()
    try:
        if single:
            extra = {"config": str(config), "local_files_only": Path(config).exists()} if config else {}
            return StableDiffusionPipeline.from_single_file(str(path), **options, **extra)
        return StableDiffusionPipeline.from_pretrained(str(path or source), **options)
    except Exception as error:  # files of another kind, or damaged ones, break the loaders in many ways
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        hint = " Try --model-config FOLDER (in a training: model_config=FOLDER), a pipeline folder of its architecture."
        raise ValueError(
            f"Could not load {source!r} as Stable Diffusion 1.x/2.x ({reason}). Expected a diffusers pipeline folder, "
            f"a .safetensors checkpoint, or a hub id.{hint if single and not config else ''}"
        ) from error


def _resolve(source: str) -> Path | None:
    """The local path behind ``source``, or None for a hub id; refuses pickles and paths that do not exist."""
    if source == "tiny":
        from ..tiny import pipeline_path

        return pipeline_path()
    path = Path(os.path.expanduser(source))
    if path.is_file() and path.suffix != ".safetensors":
        raise ValueError(f"Got {path.name}, expected a .safetensors checkpoint: pickled checkpoints can run code.")
    if path.exists():
        return path
    if path.is_absolute() or source.startswith((".", "~")) or path.suffix or source.count("/") != 1:
        raise FileNotFoundError(f"No model at {source}. Expected a pipeline folder, a .safetensors file or a hub id.")
    return None


def _check_parts(pipeline: Any) -> int:
    """Refuse inpainting, depth and mixed-up pipelines; returns the text width D."""
    missing = [n for n in ("unet", "vae", "text_encoder", "tokenizer", "scheduler") if getattr(pipeline, n) is None]
    if missing:
        raise ValueError(
            f"Got a model without {', '.join(missing)}, expected a whole Stable Diffusion. Try a pipeline folder, or a "
            "checkpoint that holds all parts."
        )
    width = pipeline.text_encoder.config.hidden_size
    unet, latent = pipeline.unet.config, pipeline.vae.config.latent_channels
    if unet.in_channels != latent:
        raise ValueError(
            f"Got a UNet with {unet.in_channels} input channels and {latent} latent channels; "
            "expected a plain text-to-image model, no inpainting or depth variant."
        )
    if unet.cross_attention_dim != width:
        raise ValueError(
            f"Got a text encoder of width {width} and a UNet that expects {unet.cross_attention_dim}: "
            "the parts come from different models."
        )
    return width


class DiffusersModel(DiffusionModel):
    """A :class:`diffusers.StableDiffusionPipeline` as a :class:`DiffusionModel`.

    Weights are frozen and in evaluation mode; latents and sigmas stay float32, the networks run in their own dtype.
    """

    def __init__(self, pipeline: Any, name: str) -> None:
        from diffusers import DDIMScheduler

        width = _check_parts(pipeline)
        self.pipeline = pipeline
        self.name = name
        self.device = torch.device(pipeline.device)
        self.dtype = pipeline.unet.dtype
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        self.prediction = self.scheduler.config.prediction_type
        if self.prediction not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"Got prediction type {self.prediction!r}, expected epsilon, v_prediction or sample.")
        self.family = family_of_width(width)
        self.width = width
        self.max_tokens = pipeline.tokenizer.model_max_length
        alphas = self.scheduler.alphas_cumprod.double().numpy()
        ratios = np.maximum((1 - alphas) / np.maximum(alphas, 1e-12), 1e-12)
        self._log_sigmas = np.minimum(0.5 * np.log(ratios), math.log(SIGMA_LIMIT))
        for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            network.requires_grad_(False).eval()

    def run(self, work: Callable[[DiffusionModel], T]) -> T:
        """Nothing to prepare: the pipeline is loaded and frozen from the start."""
        return work(self)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Tokens ``[B,L,D]`` float32 by the pipeline's own convention: last layer it has, then the final norm.

        SD2.x pipelines ship their text encoder without the last layer, so this is the penultimate layer there.
        """
        logger = logging.getLogger("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            tokens, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, False)
        finally:
            logger.setLevel(level)
        return Conditioning(tokens.float())

    def denoise(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning, branches: Sequence[Branch] = (Branch.POSITIVE,)
    ) -> Tensor:
        """One UNet pass; see :class:`DiffusionModel`. Epsilon, v and sample prediction all end as x0.

        The network treats both branches alike. It attends by the mask; it reads no pooled vector (ValueError).
        """
        if conditioning.pooled is not None:
            raise ValueError(
                f"Got a pooled vector of width {conditioning.pooled.shape[-1]}, which {self.name} does not read; "
                "expected tokens only. Try an embedding that was made for this model."
            )
        mask = None if conditioning.mask is None else conditioning.mask.to(self.device, self.dtype)
        timestep = self._timestep(sigma)
        sigma = sigma.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        scale = (sigma**2 + 1).rsqrt()
        tokens = conditioning.tokens.to(self.device, self.dtype)
        output = self.pipeline.unet(
            (x * scale).to(self.dtype),
            timestep,
            encoder_hidden_states=tokens,
            encoder_attention_mask=mask,
            return_dict=False,
        )[0].float()
        if self.prediction == "epsilon":
            return x - sigma * output
        if self.prediction == "v_prediction":
            return x * scale**2 - sigma * scale * output
        return output

    def _timestep(self, sigma: Tensor) -> Tensor:
        """The training timestep whose noise level is nearest in log sigma, int64 on the model's device.

        Levels between two training steps (Karras spacing) go to the nearer one, as in diffusers and ComfyUI.
        """
        log_sigma = np.log(np.maximum(sigma.detach().double().cpu().numpy(), 1e-6))
        steps = np.interp(log_sigma, self._log_sigmas, np.arange(len(self._log_sigmas))).round()
        return torch.as_tensor(steps, dtype=torch.int64, device=self.device)

    def sigmas(self, sampling: Sampling) -> Tensor:
        """The schedule ``[steps+1]`` of ``sampling``, float32 on the CPU.

        ``model`` is the spacing of the model's own scheduler configuration, ``leading`` that of published Stable
        Diffusion; both end at the scheduler's own final level: 0, or the first training level where the configuration
        says ``set_alpha_to_one: false``. ``trailing`` and ``karras`` begin at the noisiest level and end at 0.
        Errors: ValueError for more steps than the model was trained with.
        """
        config, steps = self.scheduler.config, sampling.steps
        total, levels = config.num_train_timesteps, np.exp(self._log_sigmas)
        if steps > total:
            raise ValueError(f"Got {steps} sampling steps, expected 1 to {total}.")
        spacing = config.timestep_spacing if sampling.spacing == "model" else sampling.spacing
        if spacing == "karras":
            schedule = grids.karras(levels[0], levels[-1], steps)
        else:
            schedule = levels[grids.TIMESTEPS[spacing](total, steps, config.steps_offset)]
        return torch.as_tensor(np.append(schedule, self._final_level(sampling.spacing)), dtype=torch.float32)

    def _final_level(self, spacing: str) -> float:
        if spacing in ("trailing", "karras"):
            return 0.0
        final = self.scheduler.final_alpha_cumprod.double().item()
        return math.sqrt((1 - final) / final)

    def noise(self, seeds: Sequence[int], size: Size = NATIVE) -> Tensor:
        """Standard normal ``[B,C,h,w]``, float32, drawn on the CPU with one generator per row."""
        factor = self.pipeline.vae_scale_factor
        native = self.pipeline.unet.config.sample_size * factor
        sides = [side or native for side in (size.height, size.width)]
        if any(side < factor or side % factor for side in sides):
            raise ValueError(f"Got a picture of {sides[0]}x{sides[1]} pixels, expected multiples of {factor}.")
        shape = (self.pipeline.unet.config.in_channels, *(side // factor for side in sides))
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(self.device)

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """The variance-preserving sampler begins with unit variance: ``noise * sqrt(1 + sigma^2)`` here."""
        return noise * (1 + sigma.item() ** 2) ** 0.5

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Back to the variance-preserving scale; the identity at sigma 0."""
        return x / (1 + sigma.item() ** 2) ** 0.5

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B,C,h,w]`` to pictures ``[B,3,H,W]`` float32 in [0,1]."""
        vae = self.pipeline.vae
        latents = (latents / vae.config.scaling_factor).to(vae.dtype)
        return (vae.decode(latents, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)

    def checkpointing(self, enabled: bool) -> None:
        """Switch activation checkpointing of the UNet and the VAE decoder."""
        for network in (self.pipeline.unet, self.pipeline.vae):
            (network.enable_gradient_checkpointing if enabled else network.disable_gradient_checkpointing)()

    def digest(self) -> str:
        """SHA-256 over the UNet's weights in name order: the same model from a folder or a file, per dtype."""
        return sha256_of(self.pipeline.unet.state_dict())

    def contents(self) -> dict[str, str]:
        """See :class:`DiffusionModel`."""
        words = self.pipeline.tokenizer.get_vocab()
        return {
            "precision": str(self.dtype).removeprefix("torch."),
            "prediction type": self.prediction,
            "denoiser": DIGEST + self.digest(),
            "text encoder": digest_of(self.pipeline.text_encoder.state_dict()),
            "tokenizer": DIGEST + hashlib.sha256(repr(sorted(words.items())).encode()).hexdigest(),
            "VAE": digest_of(self.pipeline.vae.state_dict()),
        }
