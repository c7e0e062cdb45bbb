"""What a sound does not determine, told by the metric M = JᵀJ at the match.

Let the features move by d, the distance that is left or 1 if that is more, and let [−1, 1] have its own variance, 1/3.
Then v has the covariance Σ, and v_j is uncertain by u_j,

    Σ = (M / d² + 3 I)⁻¹,    u_j = √Σ_jj,  at most 1/√3, where nothing is known of v_j.

Of drums in coloured noise, in rooms or struck where no drum of the model is, about half of the errors are smaller than
u_j/3, four of five than 1.3 u_j, and one in twenty is larger than 6 u_j (chapter 9): the tails are those of a wrong
model.

Where one parameter can make up for another, both are unsure, but not what they do together. That is told by the
eigenvectors of Σ, or rather of its n × n block for ν: directions, each with a spread of its own.
"""

from collections.abc import Sequence

from torch import Tensor

from .metric import eigen

UNIT = 1.0  # distance in features: what is less does not tell sounds apart, of which none matches a recording exactly
PRIOR = 1 / 3  # variance of a number drawn from [−1, 1]
UNSURE = (PRIOR / 2) ** 0.5  # spread of a direction above which the box says more of it than the sound
MINOR = 0.3  # component of a unit vector that is not worth a word: less than a tenth of its square


def covariance(metric: Tensor, distance: float) -> Tensor:
    """Of v (n, n), from the metric (n, n) at the match and its distance: as at the head of this module."""
    values, directions = eigen(metric)  # M spans ten decades: so rounding lets no variance be above that of the box
    variances = 1 / (values.clamp_min(0) / max(distance, UNIT) ** 2 + 1 / PRIOR)
    return directions * variances @ directions.mT


def undetermined(spreads: Tensor, directions: Tensor, names: Sequence[str]) -> list[str]:
    """In words, that of which the box says more than the sound: "attack", or combinations like "0.8 decay + 0.6 index".

    It is the span of those `Match.directions` whose spread is above `UNSURE`. First come the parameters that lie in it,
    up to `MINOR`, then the directions that are left of it, least determined first.
    """
    is_unsure = spreads > UNSURE
    span = directions[:, is_unsure]  # (n, K)
    alone = span.square().sum(1) > 1 - MINOR**2  # (n,)
    rest = span * spreads[is_unsure] * ~alone[:, None]
    _, combinations = eigen(rest @ rest.mT)
    words = [name for name, is_alone in zip(names, alone.tolist(), strict=True) if is_alone]
    for vector in combinations.T.flip(0)[: max(0, span.shape[1] - len(words))].tolist():
        terms = sorted(zip(vector, names, strict=True), key=lambda term: -abs(term[0]))
        terms = [term for term in terms if abs(term[0]) > MINOR] or terms[:3]
        signed = " ".join(f"{'−' if component < 0 else '+'} {abs(component):.1f} {name}" for component, name in terms)
        words.append(signed.removeprefix("+ ") if len(terms) > 1 else terms[0][1])
    return words


def verdict(words: str) -> str:
    """A line that tells what is `undetermined`, in words that semicolons join, or none."""
    return f"not determined by the sound: {words}" if words else "the sound determines all parameters"
