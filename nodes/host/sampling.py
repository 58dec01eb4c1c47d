"""Sampling through the host's own code, with guidance refinements as patches of a cloned model."""

from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from torch import Tensor

from reneg_core.guidance import Guidance, rescale

from .attention import guided_away, require_cross_attention
from .probing import fitted_latent

Latent = dict[str, Any]


def sampler_names() -> list[str]:
    """Every sampler the host and its packs offer now."""
    return list(comfy.samplers.KSampler.SAMPLERS)


def scheduler_names() -> list[str]:
    """Every scheduler the host and its packs offer now."""
    return list(comfy.samplers.KSampler.SCHEDULERS)


def guided(model: Any, guidance: Guidance) -> Any:
    """``model`` unchanged for neutral settings, else a clone with attention guidance, interval and rescale installed.

    Errors: ValueError for attention guidance of a model that has no cross-attention.
    """
    interval = (guidance.start, guidance.end) != (0.0, 1.0)
    if not interval and guidance.rescale == 0 and guidance.attention == 0:
        return model
    model = model.clone()
    if guidance.attention:
        require_cross_attention(model)
        _install_attention(model, guidance.attention)
    if interval:
        _install_interval(model, guidance)
    if guidance.rescale:
        model.set_model_sampler_post_cfg_function(
            lambda args: rescale(args["denoised"], args["cond_denoised"], guidance.rescale)
        )
    return model


def _install_attention(model: Any, strength: float) -> None:
    """The positive pass alone runs, guided inside the attention, and stands for both branches. Where there is no
    negative, as outside an interval, it is not guided."""
    options = model.model_options
    inner = options.get("sampler_calc_cond_batch_function", _calculate)
    options["disable_cfg1_optimization"] = True  # else the host hands on no negative at cfg 1

    def calculate(args: dict[str, Any]) -> list[Tensor]:
        positive, *rest = args["conds"]
        if not any(rest):
            return inner(args)
        tokens, x = rest[0][0]["model_conds"]["c_crossattn"], args["input"]
        tokens = tokens.process_cond(batch_size=len(x), device=x.device, area=None).cond
        told = guided_away(args["model_options"], tokens, strength)
        return inner({**args, "conds": [positive], "model_options": told}) * len(args["conds"])

    options["sampler_calc_cond_batch_function"] = calculate


def _install_interval(model: Any, guidance: Guidance) -> None:
    """Outside the interval the positive pass alone runs and stands for both branches, so that CFG returns it."""
    options = model.model_options
    inner = options.get("sampler_calc_cond_batch_function", _calculate)
    sampling = model.get_model_object("model_sampling")
    first, last = sampling.percent_to_sigma(guidance.start), sampling.percent_to_sigma(guidance.end)

    def calculate(args: dict[str, Any]) -> list[Tensor]:
        level = args["sigma"][0].item()
        if last < level <= first:
            return inner(args)
        alone = inner({**args, "conds": args["conds"][:1]})[0]
        return [alone] * len(args["conds"])

    options["sampler_calc_cond_batch_function"] = calculate


def _calculate(args: dict[str, Any]) -> list[Tensor]:
    return comfy.samplers.calc_cond_batch(
        args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
    )


def sample(
    model: Any,
    positive: list,
    negative: list,
    latent: Latent,
    *,
    seed: int,
    steps: int,
    cfg: float,
    sampler: str,
    scheduler: str,
    denoise: float = 1.0,
) -> Latent:
    """What the stock KSampler does, bit for bit: its noise, its preview, its masks and batches."""
    image, latent = fitted_latent(model, latent)
    noise = comfy.sample.prepare_noise(image, seed, latent.get("batch_index"))
    samples = comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        sampler,
        scheduler,
        positive,
        negative,
        image,
        denoise=denoise,
        noise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return {**latent, "samples": samples}


def guider(model: Any, positive: list, negative: list, cfg: float) -> Any:
    """A GUIDER for SamplerCustomAdvanced."""
    made = comfy.samplers.CFGGuider(model)
    made.set_conds(positive, negative)
    made.set_cfg(cfg)
    return made
