"""A negative at cfg 1 inside ComfyUI: through the stock node's self-attention guidance, and through the pack's own
guidance of cross-attention, in which it is also learned.

    python benchmarks/host_nag.py      (COMFYUI_PATH: a ComfyUI that has NAGuidance)

The tiny world by the host's classes. What is learned sees the reward alone, at attention guidance 4; then all are drawn
by stock KSampler or the sampler node on 72 test pairs with noises of their own, and judged by the independent measure.
The stock node has the parameters at which its formula is the pack's. Writes benchmarks/results/host_nag.json.
"""

import importlib
import time
from typing import Any

import host_inside

STRENGTH, STEPS = 4.0, 40
WORDS = "watermark, border, lines, double"
DRAWN = {"steps": 10, "cfg": 1.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0}
SETTINGS = {
    **{"batch_size": 16, "width": 0, "height": 0, "sampling_steps": 10, "cfg": 1.0, "learning_rate": 0.02},
    **{"points": 1, "micro_batch": 16, "scheduler": "karras", "solver": "dpmpp_2m", "checkpointing": False},
    **{"validate_every": 10, "validation_pairs": 24, "patience": 0, "norm_limit": 0.0, "last_steps": 10},
    **{"through": 0, "vary": "off", "prompt_file": "none", "attention_guidance": STRENGTH},
}
LABELS = {
    "none": "no negative",
    "stock_empty": "the empty prompt, stock node",
    "stock_words": "words, stock node",
    "stock_learned": "learned through ours, stock node",
    "own_empty": "the empty prompt, ours",
    "own_words": "words, ours",
    "own_learned": "learned through ours, ours",
}
AGAINST = [("own_learned", name) for name in LABELS if name != "own_learned"] + [
    ("stock_learned", "stock_words"),
    ("stock_learned", "stock_empty"),
    ("stock_learned", "none"),
    ("stock_words", "none"),
]


def measure() -> None:
    nodes = host_inside.host_and_pack()
    importlib.import_module("reneg_pack.nodes.host.files").register_folders()
    import torch
    from comfy_api.internal import make_locked_method_func
    from comfy_extras.nodes_nag import NAGuidance
    from reneg_pack.nodes.host import rewards
    from reneg_pack.nodes.host.text import embedding_from
    from reneg_pack.nodes.layout import to_bchw
    from reneg_pack.nodes.sampling import CFGSampler
    from reneg_pack.nodes.tiny import LoadTinyWorld
    from reneg_pack.nodes.training import Train, TrainingSettings

    from reneg_core.evaluation.statistics import estimate
    from reneg_core.tiny import measure as independent
    from reneg_core.tiny import test_prompts, train_prompts, validation_prompts

    def call(node: Any, **inputs: Any) -> Any:
        return make_locked_method_func(node, "execute", node.PREPARE_CLASS_CLONE({}))(**inputs)

    with torch.inference_mode():
        model, clip, vae, _ = LoadTinyWorld.execute(1).args
        stock = NAGuidance.execute(model, STRENGTH + 1, 0.5, 2.5).args[0]
        reward = rewards.load("tiny", None, torch.float32)
        settings = call(TrainingSettings, **SETTINGS, validation_prompts="\n".join(validation_prompts()))[0]
        own = {"preset": "from settings", "steps": STEPS, "size": 32, "seed": 0, "existing_run": "continue"}
        named = {"model": model, "clip": clip, "vae": vae, "reward": reward, "settings": settings}
        began = time.perf_counter()
        learned = call(Train, **named, prompts="\n".join(train_prompts()), run_name="nag", **own)
        seconds = time.perf_counter() - began
        texts = {text: nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("", WORDS, *test_prompts())}
        negatives = {"empty": texts[""], "words": texts[WORDS], "learned": learned[0]}

        def pictures(name: str, prompt: str, seed: int) -> Any:
            latent = {"samples": torch.zeros(1, 12, 8, 8)}
            where, _, kind = name.partition("_")
            if where == "own":
                embedding = learned[1] if kind == "learned" else embedding_from(negatives[kind], "width-128")
                given = {"model": model, "positive": texts[prompt], "embedding": embedding, "latent_image": latent}
                found = call(CFGSampler, **given, seed=seed, **DRAWN, attention_guidance=STRENGTH)[0]
            else:
                used, negative = (stock, negatives[kind]) if kind else (model, texts[""])
                order = (seed, DRAWN["steps"], 1.0, DRAWN["sampler_name"], DRAWN["scheduler"])
                found = nodes.KSampler().sample(used, *order, texts[prompt], negative, latent)[0]
            return to_bchw(nodes.VAEDecode().decode(vae, found)[0])

        scores = {
            name: torch.tensor(
                [
                    float(independent(pictures(name, prompt, 1000 + i), [prompt])[0])
                    for i, prompt in enumerate(test_prompts())
                ]
            )
            for name in LABELS
        }
    means = {name: round(float(values.mean()), 4) for name, values in scores.items()}
    against = {}
    for first, second in AGAINST:
        found = estimate((scores[first] - scores[second])[:, None].numpy())
        against[f"{first} over {second}"] = {
            "difference": round(found.value, 4),
            "interval": [round(bound, 4) for bound in found.interval],
        }
    rows = [(LABELS[name], f"{value:.3f}") for name, value in means.items()]
    numbers = {"pairs": len(test_prompts()), "strength": STRENGTH, "steps": STEPS, "seconds": round(seconds, 1)}
    host_inside.report("host_nag", rows, numbers | {"words": WORDS, "means": means, "against": against})


if __name__ == "__main__":
    host_inside.enter(__file__)
    measure()
