"""The order in which the images of an archive are labelled, and why each of them is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping

from monai_wscxr.errors import InputError
from monai_wscxr.label.ranking import ImageScore
from monai_wscxr.label.variety import varied_picks

STRATEGIES = {
    "varied": "Suspicious images that stand for others and are unlike those labelled",
    "most_suspicious": "Highest anomaly score first",
    "most_uncertain": "Nearest to the operating point first",
    "random": "In random order",
}
"""Descriptions by name; the first one is the default."""
DEFAULT = next(iter(STRATEGIES))

_NOT_SCORED = "Not scored yet"
_BY_SCORE = "Next by anomaly score"


def ordered(
    strategy: str,
    ids: Iterable[str],
    scores: Mapping[str, ImageScore],
    threshold: float | None,
    seed: int = 0,
    seen: Collection[str] = (),
) -> dict[str, str]:
    """Sort image ids in the order in which a strategy has them labelled.

    Args:
        strategy: one of `STRATEGIES`. "varied" begins with suspicious images that stand for others (`varied_picks`) and goes on
            by score; "most_suspicious" begins with the highest score, "most_uncertain" with the score nearest to the operating
            point; "random" depends on the seed and the ids alone.
        ids: images to sort; those without a score come last, except at random.
        scores: scores by image id, also of images that are labelled.
        threshold: the operating point; None without a model.
        seed: seed of the random order.
        seen: ids of images that are labelled or skipped.

    Returns:
        One sentence, without its full stop, that says why an image is asked for, by id, in the order of the strategy.

    Raises:
        InputError: on an unknown strategy.
    """
    keys: dict[str, tuple[str, Callable[[str], float]]] = {
        "varied": (_BY_SCORE, lambda i: -scores[i].anomaly_score),
        "most_suspicious": (_BY_SCORE, lambda i: -scores[i].anomaly_score),
        "most_uncertain": ("Near the operating point", lambda i: abs(scores[i].anomaly_score - (threshold or 0.0))),
        "random": ("Drawn at random", lambda i: _drawn(seed, i)),
    }
    if strategy not in keys:
        raise InputError(f"unknown strategy {strategy!r}; use one of {', '.join(STRATEGIES)}")
    why, key = keys[strategy]
    known: list[str] = []
    rest: list[str] = []
    for image_id in ids:
        (known if strategy == "random" or image_id in scores else rest).append(image_id)
    first: dict[str, str] = {}
    if strategy == "varied":
        waiting = set(known)
        # images that can be neither labelled nor shown are in `scores` no more, so all others with a score were seen
        picks = varied_picks(scores, {i for i in scores if i not in waiting} | set(seen))
        first = {pick.image_id: _why_varied(pick.stands_for) for pick in picks}
    others = sorted((i for i in known if i not in first), key=lambda i: (key(i), i))
    return first | dict.fromkeys(others, why) | dict.fromkeys(rest, _NOT_SCORED)


def _drawn(seed: int, image_id: str) -> float:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{image_id}".encode(), digest_size=6).digest(), "big")


def _why_varied(stands_for: int) -> str:
    if stands_for == 1:
        return "Suspicious, and unlike the images labelled so far"
    others = f"{stands_for - 1} others resemble" if stands_for > 2 else "one other resembles"
    return f"Suspicious, and {others} it more than any image labelled so far"
