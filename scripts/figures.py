"""Put the measured figures where the documents quote them: every number between its marks comes from a results file.

    python scripts/figures.py           write them
    python scripts/figures.py --check   say which documents are out of date, exit code 1 if any is

A mark is ``<!--=NAME-->text<!--/-->``, invisible on a rendered page; NAME is a function of `FIGURES` with its arguments
after colons, as in ``claim:embedding:mean``. Results are in benchmarks/results, written by the scripts in benchmarks.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (
    "README.md",
    "docs/comfyui.md",
    "docs/recipes.md",
    "docs/benchmarks.md",
    "docs/evaluation.md",
    "docs/models.md",
    "docs/testing.md",
    "docs/texforce.md",
    "reneg_core/tiny/README.md",
)
MARK = re.compile(r"<!--=([^>]*?)-->(.*?)<!--/-->", re.DOTALL)
MEASURE = "independent"


@cache
def results(name: str) -> Any:
    """What the benchmark of that name left."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def _signed(value: float, interval: list[float], places: int = 3) -> str:
    low, high = interval
    return f"{value:+.{places}f} ({low:+.{places}f} to {high:+.{places}f})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


FIGURES: dict[str, Callable[..., str]] = {}


def figure(function: Callable[..., str]) -> Callable[..., str]:
    """Make a function's name usable in a mark."""
    FIGURES[function.__name__] = function
    return function


WORDS = {
    "none": "empty prompt",
    "text": "plain words",
    "best_text": "strongest text",
    "embedding": "learned",
    "adapted": "learned, then adapted per picture",
}


def _demo() -> Any:
    return results("claim")["demo"]


def _mean(mode: dict[str, Any], places: int = 3) -> str:
    low, high = mode[f"{MEASURE}_interval"]
    return f"{mode[f'{MEASURE}_mean']:.{places}f} ({low:.{places}f} to {high:.{places}f})"


@figure
def demo_table() -> str:
    """Every mode of the demo."""
    run, rows = _demo(), []
    for mode, found in run["modes"].items():
        against = [run["against"].get(f"{mode}>{rival}") for rival in ("none", "best_text")]
        shares = [f"{one['wins']:.0%}" if one else "" for one in against]
        words = WORDS[mode] + (f": {found['label']}" if mode.endswith("text") else "")
        rows.append([words, f"{run['scales'][mode]:g}", f"{found['reward_mean']:.2f}", _mean(found), *shares])
    head = ["negative", "guidance scale", "reward", "independent measure", "beats empty", "beats strongest text"]
    return _table(head, rows)


@figure
def gain(first: str, second: str) -> str:
    """Mean difference with its interval."""
    found = _demo()["against"][f"{first}>{second}"]
    return _signed(found["difference"], found["interval"])


@figure
def attempt(name: str, seed: str = "0") -> str:
    """Learned against the strongest text in an earlier attempt at the claim."""
    found = results(name)["runs"][int(seed)]["against"]["embedding>best_text"]
    return f"{_signed(found['difference'], found['interval'])}, {found['wins']:.0%} of the pairs"


@figure
def wins(first: str, second: str) -> str:
    """Share of the pairs won."""
    return f"{_demo()['against'][f'{first}>{second}']['wins']:.0%}"


@figure
def upper_half(first: str, second: str) -> str:
    """Mean difference on the half of the pairs that is best with the second."""
    return f"{_demo()['against'][f'{first}>{second}']['upper_half']:+.3f}"


@figure
def demo(name: str) -> str:
    """A plain number of the demo's run: pairs, seconds."""
    return str(_demo()[name])


@figure
def seeds_table() -> str:
    """The claim with each training seed."""
    rows = []
    for run in results("claim")["runs"]:
        best, none = run["against"]["embedding>best_text"], run["against"]["embedding>none"]
        measured = [f"{run['modes'][mode][f'{MEASURE}_mean']:.3f}" for mode in WORDS]
        against = [_signed(best["difference"], best["interval"]), f"{best['wins']:.0%}", f"{none['wins']:.0%}"]
        rows.append([str(run["seed"]), *measured, *against, f"{none['upper_half']:+.3f}"])
    head = ["training seed", *WORDS.values(), "learned - strongest text", "wins", "wins against empty", "upper half"]
    return _table(head, rows)


@figure
def rival(name: str) -> str:
    """A figure of the search: declared, rollouts, text, strength, guidance_scale, measure."""
    found = results("rival")
    value = found[name] if name in found else found["winners"]["best_text"][name]
    return f"{value:g}" if isinstance(value, float) and name != "measure" else str(value)


@figure
def learning_rollouts() -> str:
    """Trajectories that one training of the demo samples."""
    from reneg_core.training.run_config import load_run_config

    config = load_run_config("demo").train_config()
    return str(config.steps * config.batch_size)


@figure
def rival_table(count: str = "8") -> str:
    """The finalists of the search, and the empty prompt and plain words at their best scales."""
    found = results("rival")
    best = [*found["stages"]["finalists"][: int(count)], found["stages"]["text"][0], found["stages"]["none"][0]]
    rows = [
        [f"`{text}`" if text else "(empty)", f"{s:g}", f"{scale:g}", f"{value:.3f}"] for text, s, scale, value in best
    ]
    return _table(["text", "strength", "guidance scale", "independent measure"], rows)


@figure
def samplers(name: str, key: str) -> str:
    """How many of the cells: cells, better, worse."""
    return str(results("samplers")["counts"][name][key])


@figure
def samplers_table() -> str:
    """Every cell."""
    rows = []
    for cell in results("samplers")["cells"]:
        measured = [f"{mode[MEASURE]:.3f}" for mode in cell["means"].values()]
        against = [_signed(one["difference"], one["interval"]) for one in cell["against_best_text"].values()]
        rows.append([cell["sampling"], *measured, *against])
    learned = ["learned on one sampler", "learned on many"]
    head = ["judged on", "empty", "strongest text", *learned, "one - text", "many - text"]
    return _table(head, rows)


@figure
def recipes_table() -> str:
    """Every recipe, a mean over its seeds with the smallest and largest, and beside ours."""
    beside, rows = results("recipes")["beside"], []
    for name, entry in results("recipes")["recipes"].items():
        runs = list(entry["runs"].values())
        seconds = f"{min(run['seconds'] for run in runs):.0f}"
        reward = _spread([run["reward"] for run in runs], 2)
        measured = _spread([run[MEASURE] for run in runs], 3)
        less = [_signed(one[0], one[1:]) for one in (beside[name]["ours"], beside[name]["best_text"])]
        rows.append([name, seconds, reward, measured, *(less if name != "ours" else ["", less[1]])])
    head = [
        "recipe",
        "seconds",
        "reward",
        "independent measure",
        "less that of ours",
        "less that of the strongest text",
    ]
    return _table(head, rows)


def _spread(values: list[float], places: int) -> str:
    low, mean, high = (f"{value:.{places}f}" for value in (min(values), sum(values) / len(values), max(values)))
    return f"{mean} ({low} to {high})"


@figure
def recipe(name: str, key: str) -> str:
    """Mean over a recipe's seeds of reward or measure, or the seconds of the fastest."""
    runs = list(results("recipes")["recipes"][name]["runs"].values())
    if key == "seconds":
        return f"{min(run[key] for run in runs):.0f}"
    return f"{sum(run[MEASURE if key == 'measure' else key] for run in runs) / len(runs):.3f}"


@figure
def drawn(name: str) -> str:
    """Mean measure of drawn pictures."""
    return f"{results('world')['drawn'][name]:.3f}"


@figure
def costs_table() -> str:
    """What each flaw costs."""
    rows = [[name, f"{one['measure']:.2f}", f"{one['reward']:.2f}"] for name, one in results("world")["costs"].items()]
    return _table(["at full strength", "takes off the measure", "takes off the reward"], rows)


@figure
def grids_table() -> str:
    """The empty prompt on every grid."""
    return _table(["sampler", "empty prompt"], [[n, f"{v:.3f}"] for n, v in results("world")["grids"].items()])


@figure
def scales_table() -> str:
    """Every negative at every guidance scale."""
    found = results("world")["scales"]
    scales = list(next(iter(found.values())))
    rows = [[WORDS[name], *(f"{found[name][scale]:.3f}" for scale in scales)] for name in found]
    return _table(["negative", *(f"scale {scale}" for scale in scales)], rows)


@figure
def world_samplings() -> str:
    """How the pictures were made whose flaws were counted."""
    return "; ".join(f"{WORDS[mode]}: {words}" for mode, words in results("world")["sampling"].items())


@figure
def shares_table() -> str:
    """Share of the pictures that show each flaw, under each negative."""
    found, counter = results("world")["shares"], results("world")["flaw_counter"]
    rows = []
    for name in next(iter(found.values())):
        one = counter.get(name)
        right = f"{one['found']:.0%} / {one['false']:.0%}" if one else ""
        rows.append([name, *(f"{mode[name]:.0%}" for mode in found.values()), right])
    head = ["flaw", *(WORDS.get(mode, "training pictures") for mode in found), "counter finds / imagines"]
    return _table(head, rows)


@figure
def coverage_table() -> str:
    """How often a 95 % interval holds the truth, in percent."""
    found = results("coverage")["coverage"]
    rows = [[design, *(f"{100 * share:.1f}" for share in shares.values())] for design, shares in found.items()]
    return _table(["prompts x noises", *next(iter(found.values()))], rows)


def _tuned(name: str) -> str:
    """A mode of the text encoders' benchmark in words."""
    if name in ("none", "negative"):
        return {"none": "as it was", "negative": "as it was, learned negative"}[name]
    tuned, _, negative = name.partition("+")
    together = {"": "", "negative": ", learned negative", "on-top": ", negative learned on top"}[negative]
    return f"tuned, seed {tuned.partition('-')[2]}{together}"


@figure
def texforce_section(what: str) -> str:
    """The encoders that one recipe tuned, against the encoder as it was."""
    found, rows = results("texforce").get(what), []
    if found is None:
        return " not measured yet."
    for mode, means in found["modes"].items():
        against = found["against"].get(f"{mode}>none")
        each = [against[m] for m in ("reward", MEASURE)] if against else []
        gains = [_signed(one["difference"], one["interval"]) for one in each] or ["", ""]
        rows.append([_tuned(mode), f"{means['reward']:.3f}", gains[0], f"{means[MEASURE]:.3f}", gains[1]])
    head = ["text encoder", f"reward {found['reward']}", "gained", "independent measure", "gained"]
    spent = max(run["trajectories"] for run in found["spent"].values())
    return f" {spent} trajectories a run, judged with {found['sampling']}.\n{_table(head, rows)}"


@figure
def together(negative: str) -> str:
    """A tuned encoder with a negative against the same without, by the independent measure, seed by seed."""
    against = results("texforce")["direct"]["against"]
    both = [(mode, mode.partition(">")[2]) for mode in against if mode.startswith("direct") and f"+{negative}>" in mode]
    found = [against[mode][MEASURE] for mode, alone in both if alone.startswith("direct")]
    return ", ".join(_signed(one["difference"], one["interval"]) for one in found)


@figure
def machine(name: str, part: str = "") -> str:
    """What a benchmark, or a part of it, ran on."""
    found = (results(name)[part] if part else results(name))["machine"]
    torch, threads = found["torch"].split("+")[0], found["threads"]
    return f"torch {torch}, {found['device']}, {threads} thread{'s' * (threads > 1)}"


@figure
def number(name: str, path: str, places: str = "2", scale: str = "1") -> str:
    """Any number of a results file: ``sd15_full_size:seconds.denoise, no gradient:3``."""
    value = results(name)
    for key in path.split("."):
        value = value[int(key) if isinstance(value, list) else key]
    return f"{value * float(scale):.{places}f}"


def _beside(seconds: dict[str, float], plain: str, ours: str, places: int) -> list[str]:
    return [f"{seconds[plain]:.{places}f}", f"{seconds[ours]:.{places}f} ({seconds[ours] / seconds[plain]:.2f}x)"]


@figure
def step_table() -> str:
    """A training step's parts, plain and ours."""
    found = results("training_step_tiny")
    rows = []
    for unit, values, places in (("s", found["seconds"], 3), ("peak MiB", found["peak_mib"], 0)):
        for part in ("UNet part", "gradient part", "whole step"):
            light = values.get(f"{part}, ours checkpointed")
            cells = _beside(values, f"{part}, plain", f"{part}, ours", places)
            share = f"{light:.{places}f} ({light / values[f'{part}, plain']:.2f}x)" if light else ""
            rows.append([f"{part}, {unit}", *cells, share])
    return _table(["part", "plain", "ours", "ours, checkpointed"], rows)


@figure
def full_size_table() -> str:
    """The stages of a step at SD1.5's size."""
    found = results("sd15_full_size")
    rows = [[stage, f"{value:.3f}"] for stage, value in found["seconds"].items()]
    rows += [
        ["whole step", f"{found['whole_step']:.1f}"],
        ["floor: the passes that cannot be avoided", f"{found['floor']:.1f}"],
    ]
    return _table(["stage", "s"], rows)


@figure
def memory_table() -> str:
    """A step's peak at the published sizes, and the largest micro-batch on some cards, plain / recomputed."""
    rows, ways = [], ("plain", "recomputed")
    for one in results("memory")["models"].values():
        fits = zip(*(one["fits"][way].values() for way in ways), strict=True)
        peaks = [f"{one['gib'][way]['peak'] / 2**30:.1f}" for way in ways]
        rows.append(
            [one["label"], str(one["pixels"]), *peaks, *(f"{few or '-'} / {many or '-'}" for few, many in fits)]
        )
    return _table(["model", "px", "GiB", "recomputed", "8 GB", "12 GB", "16 GB", "24 GB"], rows)


@figure
def processes_table() -> str:
    """Two processes on one machine against one."""
    names = {"step": "training step", "comparison": "comparison"}
    rows = [
        [names[kind], *(f"{one[way]:.2f}" for way in ("alone", "shared", "apart")),
         *(f"{one[share]:.0%}" for share in ("efficiency", "sharing"))]
        for kind, one in results("processes")["measured"].items()
    ]  # fmt: skip
    head = [
        "",
        "one process, s",
        "two share it, s",
        "two, all of it each, s",
        "of twice the speed",
        "of what two get here",
    ]
    return _table(head, rows)


@figure
def calls(name: str) -> str:
    """How many sums over all processes a step makes."""
    return str(len(results(name)["sums"]))


@figure
def paper_table() -> str:
    """Processes on paper, with the traffic counted."""
    rows = [
        [str(one["gpus"]), str(one["samples"]), f"{one['sent_mb']:.2f}", f"{one['exchange_ms']:.1f}",
         f"{one['step']:.2f}", f"{one['efficiency_step']:.1%}", f"{one['efficiency']:.1%}"]
        for one in results("processes")["paper"]
    ]  # fmt: skip
    head = ["GPUs", "samples each", "MB sent by each", "exchange, ms", "step, s", "efficiency", "with validations"]
    return _table(head, rows)


@figure
def memory_error() -> str:
    """The largest difference of computed from recorded memory."""
    return f"{max(abs(v - 1) for one in results('memory')['against'].values() for v in one.values()):.0%}"


@figure
def decoders_agreement_table() -> str:
    """How near each way to decode comes to the full decoder's gradient."""
    reaches = results("decoders")["agreement"]["reaches"]
    rows = [
        [f"`{way}`", *(f"{one[way][what]:.4f}" for one in reaches.values() for what in ("whole", "batch"))]
        for way in next(iter(reaches.values()))
    ]
    return _table(["decoder", *(head for name in reaches for head in (f"{name}, all prompts", "a batch"))], rows)


@figure
def originals_table() -> str:
    """The reward models beside their authors' packages."""
    rows = []
    for name in ("rewards_image_reward_fp32", "rewards_hpsv2.1_fp32", "rewards_hpsv2.1_bf16"):
        found = results(name)
        theirs, ours = found["original"], found["ours"]
        rows.append(
            [
                f"{found['reward']}, {found['pictures_per_call']} a call, {found['dtype']}",
                *(f"{side['seconds_per_call']:.2f}" for side in (theirs, ours)),
                f"{found['speed_up']:.2f}x",
                *(f"{side['peak_gib']:.1f}" for side in (theirs, ours)),
                f"{found['largest_score_difference']:.1e}",
            ]
        )
    head = ["reward", "original, s a call", "ours", "throughput", "original, peak GiB", "ours"]
    return _table([*head, "largest score difference"], rows)


@figure
def families_table() -> str:
    """Every model family's small pipeline: its pictures, gradients and training."""
    rows = []
    for one in results("families")["families"].values():
        gradients = [f"{part} {max(errors):.1e}" for part, errors in one["gradient_error"].items()]
        reward = one["training"]
        rows.append(
            [
                f"{one['label']}, {one['scheduler']}",
                f"{max(one['picture_difference'].values()):.1e}",
                ", ".join(gradients),
                f"{reward['before']:.4f} to {reward['after']:.4f}",
            ]
        )
    return _table(["family and its scheduler", "pixels", "gradient", "reward before and after"], rows)


@figure
def host_families_table() -> str:
    """Every architecture's small network inside ComfyUI: its estimates, gradients and training."""
    rows = []
    for one in results("host_families")["families"].values():
        run = one["training"]
        errors = [f"{part} {max(found):.1e}" for part, found in one["gradient_error"].items()]
        recomputed = max(one["reference_error"].values())
        equal = "equal" if one["ksampler_equal"] else "not equal"
        row = [one["label"], f"`{one['family']}`", f"{one['estimates']:.1e}", equal, ", ".join(errors)]
        pairs = [("before", "after"), ("ksampler_empty", "ksampler_learned")]
        rows.append([*row, f"{recomputed:.0e}", *(f"{run[first]:.5f} to {run[last]:.5f}" for first, last in pairs)])
    head = "architecture|family|estimates|latents|gradient|recomputed|reward before and after|KSampler: empty, learned"
    return _table(head.split("|"), rows)


@figure
def mutants(part: str) -> str:
    """Planted mistakes: how many were "noticed", those by module ("modules"), or each that was not ("living")."""
    found = results("mutants")
    if part == "noticed":
        every = sum(row[1] for row in found["modules"])
        share = f"{found['noticed']} noticed ({found['noticed'] / found['tried']:.1%})"
        return f"{found['tried']} of {every} mutants, {share}"
    head = {"modules": "module|mutants|tried|noticed|share", "living": "function|line|mutated|why it may live"}[part]
    return _table(head.split("|"), [[str(cell).replace("|", "\\|") for cell in row] for row in found[part]])


def rendered(text: str) -> str:
    """A document with every mark's text computed anew; KeyError for a name that no function has."""

    def fill(match: re.Match[str]) -> str:
        name, *arguments = match[1].split(":")
        return f"<!--={match[1]}-->{FIGURES[name](*arguments)}<!--/-->"

    return MARK.sub(fill, text)


def outdated() -> list[str]:
    """Documents whose figures are not those of the results."""
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
    return [name for name, text in texts.items() if rendered(text) != text]


def main() -> int:
    """Write or check all documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    stale = outdated()
    if parser.parse_args().check:
        print("\n".join(f"{name} quotes figures that are not in benchmarks/results" for name in stale), end="")
        return bool(stale)
    for name in stale:
        path = ROOT / name
        path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
