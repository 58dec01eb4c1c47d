"""Every architecture inside ComfyUI on a small random network of the host's own class: how far its estimates are from
the host's, its gradients from finite differences and from autograd without recomputation, and what a training does.

    python benchmarks/host_families.py

Random weights say nothing about how pictures look; they show that an architecture is handled as the host handles it.
fp32 on the CPU; the encoders are stand-ins that give random tokens in the family's shape.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import host_inside

INSIDE = Path(__file__).parents[1] / "tests" / "host" / "inside"
LABELS = {
    "sdxl": "Stable Diffusion XL and its small relatives",
    "sd3": "Stable Diffusion 3",
    "pixart": "PixArt-alpha",
    "pixart_sigma": "PixArt-Sigma",
    "flux": "Flux without a guidance input",
    "flux_guided": "Flux, guidance-distilled",
    "chroma": "Chroma",
    "qwen_image": "Qwen-Image",
    "lumina2": "Lumina 2",
    "ltxv": "LTX-Video",
    "wan": "Wan 2.1",
    "hunyuan_video": "HunyuanVideo",
}


def measured(name: str) -> dict[str, Any]:
    import family_checks
    import torch

    network = family_checks.built(name).network
    parts = [part for known, part in family_checks.PARTS if known == name]
    with torch.inference_mode():
        ours, theirs, _ = family_checks.samples(name)
        return {
            "label": LABELS[name],
            "architecture": network.kind,
            "family": family_checks.host_model(name).family,
            "parameters": sum(p.numel() for p in family_checks.built(name).model.model.diffusion_model.parameters()),
            "estimates": max(off for off, _ in family_checks.estimates(name)),
            "ksampler_equal": bool(torch.equal(ours, theirs)),
            "gradient_error": {
                part: [family_checks.gradient_error(name, part, through)[0] for through in (1, 2)] for part in parts
            },
            "reference_error": {part: family_checks.reference_error(name, part) for part in parts},
            "training": family_checks.trained(name, f"bench_{name}")[0],
        }


def measure() -> None:
    host_inside.host_and_pack()
    sys.path.insert(0, str(INSIDE))
    import importlib

    importlib.import_module("reneg_pack.nodes.host.files").register_folders()
    families = {name: measured(name) for name in LABELS}
    rows = [
        (
            one["label"],
            f"{one['estimates']:.0e}; "
            + ", ".join(f"{part} {max(e):.0e}" for part, e in one["gradient_error"].items()),
        )
        for one in families.values()
    ]
    host_inside.report("host_families", rows, {"families": families})


if __name__ == "__main__":
    host_inside.enter(__file__)
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    measure()
