"""ReNeg CFG Sampler against the stock KSampler in ComfyUI, run in turn.

    python benchmarks/host_sampler.py [--pairs 12]

The latents must be equal; the figure is the median of the ratios of each pair's times.
"""

import argparse
from typing import Any

import host_inside


def measure(pairs: int, steps: int, side: int) -> None:
    nodes = host_inside.host_and_pack()
    import torch
    from comfy_api.internal import make_locked_method_func
    from reneg_pack.nodes.host.text import embedding_from
    from reneg_pack.nodes.layout import to_host
    from reneg_pack.nodes.sampling import CFGSampler

    with torch.inference_mode():
        model, clip, _ = nodes.CheckpointLoaderSimple().load_checkpoint("reneg-test-sd15.safetensors")[:3]
        positive, text = (nodes.CLIPTextEncode().encode(clip, words)[0] for words in ("a house", "blurry"))
        embedding = embedding_from(text, "clip-l")
        latent = {"samples": torch.zeros(1, 4, side // 8, side // 8)}
        settings = {
            "seed": 1,
            "steps": steps,
            "cfg": 7.5,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        }
        execute = make_locked_method_func(CFGSampler, "execute", CFGSampler.PREPARE_CLASS_CLONE({}))

        def ours() -> Any:
            return execute(model=model, positive=positive, embedding=embedding, latent_image=latent, **settings)[0]

        def stock() -> Any:
            return nodes.KSampler().sample(
                model, negative=to_host(embedding), positive=positive, latent_image=latent, **settings
            )[0]

        assert torch.equal(ours()["samples"], stock()["samples"])
        ratio, own, theirs = host_inside.ratios(ours, stock, pairs)
    rows = [
        ("stock KSampler, median", f"{theirs:.3f} s"),
        ("ReNeg CFG Sampler, median", f"{own:.3f} s"),
        ("median ratio of pairs (aim: at most 1.03)", f"{ratio:.4f}"),
    ]
    host_inside.report(
        "host_sampler",
        rows,
        {"pairs": pairs, "steps": steps, "side": side, "ratio": ratio, "ours_s": own, "stock_s": theirs},
    )


if __name__ == "__main__":
    host_inside.enter(__file__)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=12, help="pairs run in turn (%(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="denoising steps (%(default)s)")
    parser.add_argument("--side", type=int, default=128, help="side of the picture in pixels (%(default)s)")
    args = parser.parse_args()
    measure(args.pairs, args.steps, args.side)
