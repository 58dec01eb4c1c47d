"""A negative at guidance scale 1: through normalised attention guidance, written and learned.

    python benchmarks/nag.py      (a few minutes on two slow cores)

On the tiny world at scale 1 the negative branch is not run. Attention guidance (arXiv 2505.21179) puts a negative into
the cross-attentions of the one pass that is left. Its strength and the words are chosen by the independent measure on
validation pairs; what is learned sees the reward alone, at that strength. Then all are judged once on 72 test pairs
with noises of their own. Writes benchmarks/results/nag.json.
"""

from lab import MEASURE, encoded, figures, judge, learn, means, recipe, test_pairs, validation_pairs
from measure import publish, table

from reneg_core.evaluation import Mode
from reneg_core.guidance import Guidance
from reneg_core.sampling import Jitter, Sampling
from reneg_core.training import TrainConfig

PLAIN = Sampling("dpmpp_2m", 10, "karras", Guidance(1.0))
STRENGTHS = (2.0, 4.0, 8.0)
TEXTS = ("", "watermark, border, lines, double", "bad watermark stock border framed lines scan screen double shaky")


def at(strength: float) -> Sampling:
    """Scale 1 with attention guidance."""
    return Sampling(PLAIN.solver, PLAIN.steps, PLAIN.spacing, Guidance(1.0, attention=strength))


def chosen() -> tuple[str, float, list[dict]]:
    """The words and the strength that the measure prefers on validation pairs, and all that were tried."""
    modes = {f"{text!r} at {s:g}": Mode(encoded([text]), sampling=at(s)) for text in TEXTS for s in STRENGTHS}
    found = judge(validation_pairs(1), modes, PLAIN)
    rows = [
        {"text": text, "strength": s, MEASURE: round(found.mean(MEASURE, f"{text!r} at {s:g}").value, 4)}
        for text in TEXTS
        for s in STRENGTHS
    ]
    best = max((row for row in rows if row["text"]), key=lambda row: row[MEASURE])
    return best["text"], best["strength"], rows


def config(strength: float) -> TrainConfig:
    """The fast recipe, on one sampler, from the empty prompt, with the guidance in the attention."""
    return recipe("fast", sampling=at(strength), jitter=Jitter())


def main() -> None:
    """Choose, learn, judge and write the table."""
    text, strength, tried = chosen()
    print(text, strength, flush=True)
    learned, seconds = learn(config(strength))
    modes = {
        "none": Mode(encoded([""]), "scale 1, no negative"),
        "empty": Mode(encoded([""]), "empty prompt", at(strength)),
        "text": Mode(encoded([text]), "words", at(strength)),
        "learned": Mode(learned.conditioning(), "learned through it", at(strength)),
    }
    found = judge(test_pairs(1, seed=5), modes, PLAIN)
    against = {name: figures(found, "learned", name) for name in ("none", "empty", "text")}
    against |= {"text over none": figures(found, "text", "none")}
    publish(
        "nag",
        {"pairs": 72, "text": text, "strength": strength, "tried": tried, "steps": config(strength).steps}
        | {"seconds": round(seconds, 1), "means": means(found), "against": against},
    )
    rows = [[modes[mode].label, f"{found.mean(MEASURE, mode).value:.3f}"] for mode in modes]
    print(table(rows, ("negative", "independent measure")))


if __name__ == "__main__":
    main()
