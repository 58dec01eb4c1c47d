"""What an evaluation shows, in sentences: the result, what it speaks about, and what to be careful of."""

from .pairs import Pairs
from .results import Evaluation
from .statistics import Estimate, decimals

FEW_PROMPTS = 20
FEW_NOISES = 4


def headline(evaluation: Evaluation) -> str:
    """The result in words, a sentence per rival: the subject (``embedding``, else the last mode) against every earlier
    mode, by the deciding measure (``independent``, else the last)."""
    judge, subject = evaluation.judge, evaluation.subject
    mean = evaluation.mean(judge, subject)
    places = decimals(evaluation.mean(judge, mode) for mode in evaluation.modes)
    start = f"{capital(evaluation.label(subject))} scores {mean.value:.{places}f} on {evaluation.label(judge)}"
    rivals = evaluation.modes[: evaluation.modes.index(subject)]
    if not rivals:
        return f"{start}{_bracket(mean, places)} over {_pairs(evaluation)}."
    first, *others = (_against(evaluation, rival) for rival in rivals)
    return " ".join([f"{start}: {first}", *(f"It scores {other}" for other in others)])


def _against(evaluation: Evaluation, rival: str) -> str:
    judge, subject = evaluation.judge, evaluation.subject
    difference = evaluation.difference(judge, subject, rival)
    rate = evaluation.win_rate(judge, subject, rival)
    places, label = decimals([difference]), evaluation.label(rival)
    size = f"{abs(difference.value):.{places}f} {'more' if difference.value > 0 else 'less'} than {label}"
    if difference.interval:
        kind = f"{100 * evaluation.confidence:g} % interval"
        low, high = (f"{end:+.{places}f}" for end in difference.interval)
        unsure = "" if difference.excludes(0) else ", so no difference that these pairs can show"
        size += f" ({kind} {low} to {high}{unsure})"
    return f"{size}, and wins {100 * rate.value:.0f} % of {_pairs(evaluation)}{_bracket(rate, 0, 100)}."


def about(pairs: Pairs) -> str:
    """What the intervals are over, and so what they speak about."""
    if len(pairs) == 1:
        return "A single pair has no interval."
    if len(pairs.prompts) == 1:
        return "The intervals are over the noises of this one prompt and say nothing about other prompts."
    if not pairs.crossed:
        return (
            "The intervals speak about other prompts and other noises: every picture has a noise of its own, and all "
            "pictures of a prompt are resampled together."
        )
    if pairs.each == 1:
        return (
            "All prompts share one noise: the intervals are over prompts and speak about this noise only; another "
            "one can give another result."
        )
    return (
        f"The intervals speak about other prompts and other noises: all prompts share the same {pairs.each} noises, so "
        "prompts and noises are resampled independently, and few noises make wide intervals."
    )


def cautions(evaluation: Evaluation) -> list[str]:
    """What a careful reader should know before the numbers."""
    judge, subject, first = evaluation.judge, evaluation.subject, evaluation.modes[0]
    found = []
    if evaluation.measures == ["reward"]:
        found.append(
            "Only the reward that was trained on is shown here. It can rise while pictures get worse (reward "
            "hacking): look at the pictures, and judge by a measure that was not trained on."
        )
    elif "reward" in evaluation.measures and judge != "reward" and subject != first:
        gained, lost = (evaluation.difference(measure, subject, first) for measure in ("reward", judge))
        if gained.excludes(0) and gained.value > 0 and lost.excludes(0) and lost.value < 0:
            found.append(
                f"The training reward rose while {evaluation.label(judge)} fell: a sign of reward hacking. "
                "Try fewer steps, a lower learning rate, or a mix of rewards."
            )
    return found + _thin_evidence(evaluation.pairs)


def _thin_evidence(pairs: Pairs) -> list[str]:
    prompts, found = len(pairs.prompts), []
    if prompts == 1:
        found.append("With a single prompt the figures say nothing about other prompts.")
    elif prompts < FEW_PROMPTS:
        found.append(
            f"With {prompts} prompts the intervals are rough: they assume that prompts differ about as a bell curve "
            f"does. {FEW_PROMPTS} or more make them dependable."
        )
    if pairs.crossed and pairs.each == 1:
        found.append(
            "All prompts were drawn from one and the same noise: the figures say nothing about other noises. Try a "
            "noise of its own for every picture."
        )
    elif pairs.crossed and pairs.each <= FEW_NOISES:
        found.append(
            f"All prompts share {pairs.each} noises: so few can hardly show how much the noise matters, and the "
            "intervals are wide for it. Try a noise of its own for every picture."
        )
    return found


def losing(evaluation: Evaluation) -> str:
    """How the subject fares in each half of the pairs sorted by the baseline's score; empty where there is no rival or
    a single pair."""
    judge, subject, rival = evaluation.judge, evaluation.subject, evaluation.rival
    halves = evaluation.halves(judge, subject, rival) if subject != rival else None
    if halves is None:
        return ""
    upper, lower = (_change(half, evaluation.confidence) for half in (halves.upper, halves.lower))
    return (
        f"Where {evaluation.label(rival)} does best (the half of the pairs in which it scores higher), "
        f"{evaluation.label(subject)} {upper}; in the other half it {lower}."
    )


def _change(difference: Estimate, confidence: float) -> str:
    places = decimals([difference])
    verb = "gains" if difference.value > 0 else "loses"
    text = f"{verb} {abs(difference.value):.{places}f}"
    if difference.interval is None:
        return text
    low, high = (f"{end:+.{places}f}" for end in difference.interval)
    return f"{text} on average ({100 * confidence:g} % interval {low} to {high})"


def _pairs(evaluation: Evaluation) -> str:
    return f"{len(evaluation.pairs)} pairs" if len(evaluation.pairs) > 1 else "one pair"


def _bracket(estimate: Estimate, places: int, scale: float = 1) -> str:
    if estimate.interval is None:
        return ""
    low, high = (f"{scale * end:.{places}f}" for end in estimate.interval)
    return f" ({low} to {high})"


def capital(text: str) -> str:
    """With a capital first letter."""
    return text[:1].upper() + text[1:]
