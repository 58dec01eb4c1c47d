"""Search for the strongest handwritten negative of the tiny world, on its validation prompts.

    python benchmarks/rival.py      (about a quarter of an hour on two slow cores)

1. Every declared candidate (`reneg_core.tiny.rivals.candidates`) at strengths 1, 2 and 3.
2. The best of them at every strength and every guidance scale.
3. The best of those with each word of the world added or left out, and the best of all so far once more so.
4. The finalists once more on fresh noises; the winner is `best_text`. The empty prompt and the plain words get their
   own best guidance scale on the same pairs.

The independent measure itself chooses, which no learned negative is ever chosen by. Writes
benchmarks/results/rival.json and reneg_core/tiny/rivals.json.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from lab import MEASURE, encoded, judge, recipe, validation_pairs
from measure import publish, table

from reneg_core.evaluation import Mode, Pairs
from reneg_core.evaluation.modes import exaggerate
from reneg_core.tiny import HANDWRITTEN_NEGATIVE
from reneg_core.tiny.prompts import WORDS
from reneg_core.tiny.rivals import SCALES, STRENGTHS, Rival, candidates, final_pairs

TARGET = Path(__file__).resolve().parent.parent / "reneg_core" / "tiny" / "rivals.json"
FIRST_SCALE = 4.0
KEPT_TEXTS, GROWN, ROUNDS, FINALISTS = 12, 3, 2, 12


def score(rivals: Iterable[Rival], pairs: Pairs) -> dict[Rival, float]:
    """Mean independent measure of each."""
    rivals, sampling = list(dict.fromkeys(rivals)), recipe().sampling
    null, rows = encoded([""]), encoded([rival.text for rival in rivals])
    modes = {
        str(i): Mode(exaggerate(null, rows[i : i + 1], rival.strength), "", sampling.at_scale(rival.guidance_scale))
        for i, rival in enumerate(rivals)
    }
    found = judge(pairs, modes, sampling)
    print(f"  {len(rivals)} negatives on {len(pairs)} pairs", flush=True)
    return {rival: found.mean(MEASURE, str(i)).value for i, rival in enumerate(rivals)}


def best(scores: dict[Rival, float], count: int) -> list[Rival]:
    """The highest first."""
    return sorted(scores, key=scores.__getitem__, reverse=True)[:count]


def grown(rival: Rival) -> list[Rival]:
    """The same with one word of the world more, and with one of its words less."""
    words = rival.text.split()
    more = [[*words, word] for word in WORDS] + [[word, *words] for word in WORDS]
    less = [words[:i] + words[i + 1 :] for i in range(len(words)) if len(words) > 1]
    return [Rival(" ".join(changed), rival.strength, rival.guidance_scale) for changed in [*more, *less]]


def main() -> None:
    """Run the search and write both files."""
    clock, small, large = time.monotonic(), validation_pairs(1), validation_pairs(2)
    first = score((Rival(text, s, FIRST_SCALE) for text in candidates() for s in (1.0, 2.0, 3.0)), small)
    texts = list(dict.fromkeys(rival.text for rival in best(first, len(first))))[:KEPT_TEXTS]
    second = score((Rival(text, s, scale) for text in texts for s in STRENGTHS for scale in SCALES), large)
    changed: dict[Rival, float] = {}
    for _ in range(ROUNDS):
        leaders = best({**second, **changed}, GROWN)
        changes = dict.fromkeys(change for rival in leaders for change in grown(rival))
        changed |= score((change for change in changes if change not in changed), large)
    fresh = Pairs(*final_pairs())
    last = score(best({**second, **changed}, FINALISTS), fresh)
    plain = {name: score((Rival(text, 1.0, s) for s in SCALES), fresh) for name, text in PLAIN.items()}
    winners = {name: best(scores, 1)[0] for name, scores in (*plain.items(), ("best_text", last))}
    TARGET.write_text(json.dumps({name: asdict(rival) for name, rival in winners.items()}, indent=1) + "\n", "utf-8")
    stages = {"candidates": first, "strengths and scales": second, "grown": changed, "finalists": last, **plain}
    rollouts = sum(len(s) * n for s, n in zip(stages.values(), (24, 48, 48, 192, 192, 192), strict=True))
    publish(
        "rival",
        {
            "declared": len(candidates()),
            "rollouts": rollouts,
            "seconds": round(time.monotonic() - clock),
            "winners": {name: {**asdict(rival), "measure": round({**last, **plain.get(name, {})}[rival], 4)}
                        for name, rival in winners.items()},
            "stages": {name: _rows(scores) for name, scores in stages.items()},
        },
    )  # fmt: skip
    head = ("text", "strength", "scale", "measure")
    print(table([(r.text, r.strength, r.guidance_scale, f"{last[r]:.4f}") for r in best(last, FINALISTS)], head))


PLAIN = {"none": "", "text": HANDWRITTEN_NEGATIVE}


def _rows(scores: dict[Rival, float]) -> list[list[object]]:
    return [[*asdict(rival).values(), round(scores[rival], 4)] for rival in best(scores, len(scores))]


if __name__ == "__main__":
    main()
