"""Is one method better than another? Differences on the same episodes, seed by seed, with intervals by a bootstrap."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from smat_peft.errors import DataError
from smat_peft.evaluation.records import ROLE_TITLES, Record, Role

DRAWS, SEED = 10_000, 0
COVERAGE = (0.025, 0.975)

Verdict = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A mean difference with its 95 % interval.

    Attributes:
        mean: In the unit of the records.
        low: Lower end.
        high: Upper end.
        per_seed: The mean difference of each training seed.
    """

    mean: float
    low: float
    high: float
    per_seed: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class PairedDifferences:
    """A method minus a baseline, on the same episodes.

    Attributes:
        seeds: The method's training seeds, `S`.
        roles: What each domain is for.
        values: By domain the differences, `[S, E]`: a row a seed, a column an episode.
    """

    seeds: tuple[int | None, ...]
    roles: dict[str, Role]
    values: dict[str, NDArray[np.float64]]
    _drawn: dict[tuple[str, int], tuple[NDArray[np.float64], NDArray[np.float64]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def domains(self, role: Role) -> list[str]:
        """The domains of a role."""
        return [name for name, its_role in self.roles.items() if its_role == role]

    def interval(self, domains: str | Sequence[str], *, draws: int = DRAWS) -> Interval:
        """Mean over domains, each weighing the same, with the interval of a hierarchical bootstrap.

        Training seeds are drawn with replacement, then episodes within each domain; the domains are fixed. All seeds
        saw the same episodes, and so they do in a draw: drawn anew for each seed, the luck of an episode that all of
        them share would seem to average out. The spread between the means of few seeds, and that of few episodes,
        which a bootstrap makes too narrow, is widened to that of Student's t (Hesterberg 2015, What Teachers Should
        Know About the Bootstrap, the expanded percentile interval). With one seed there is nothing to say of others.

        Args:
            domains: One domain or several.
            draws: How often to draw.

        Raises:
            DataError: No domain, or one without records.
        """
        names = [domains] if isinstance(domains, str) else sorted(domains)
        unknown = [name for name in names if name not in self.values]
        if unknown or not names:
            known = ", ".join(self.values)
            raise DataError(f"no differences on {', '.join(unknown) or 'no domain at all'}; there are some on {known}")
        freedom = sum(self.values[name].shape[1] - 1 for name in names)
        drawn = np.zeros(draws)
        for name in names:
            of_seeds, luck = self._draw(name, draws)
            drawn += (of_seeds + _widening(self.values[name].shape[1], freedom) * luck) / len(names)
        per_seed = np.mean([self.values[name].mean(1) for name in names], axis=0)
        low, high = np.quantile(drawn, COVERAGE)
        return Interval(float(per_seed.mean()), float(low), float(high), tuple(per_seed.tolist()))

    def _draw(self, name: str, draws: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A domain's means over drawn seeds, and by how much drawn episodes change them; once for all intervals."""
        if (name, draws) not in self._drawn:
            values = self.values[name]
            number, count = values.shape
            shares = np.random.default_rng(SEED).multinomial(number, [1 / number] * number, size=draws) / number
            of_seeds = (1 / number + _widening(number, number - 1) * (shares - 1 / number)) @ values.mean(1)
            episodes = np.random.default_rng([SEED, zlib.crc32(name.encode())]).integers(count, size=(draws, count))
            mixed = shares @ values
            luck = np.take_along_axis(mixed, episodes, axis=1).mean(1) - mixed.mean(1)
            self._drawn[name, draws] = of_seeds, luck
        return self._drawn[name, draws]


def _widening(count: int, freedom: int) -> float:
    """What the spread of so few values is to be multiplied by, with the degrees of freedom of what it is part of."""
    if count == 1:
        return 1.0
    normal, student = stats.norm.ppf(COVERAGE[1]), stats.t.ppf(COVERAGE[1], freedom)
    return float(np.sqrt(count / (count - 1)) * student / normal)


def pair_records(method: Iterable[Record], baseline: Iterable[Record], value: str = "accuracy") -> PairedDifferences:
    """Pair a method's records with a baseline's, episode by episode and seed by seed, in whatever order they come.

    Args:
        method: Records of one predictor and adaptation, of one training seed or several.
        baseline: The same of the baseline: of the same seeds, or of none (`seed=None`: nothing was trained) for all.
        value: Which attribute of a record.

    Raises:
        DataError: They are not of the same episodes or seeds, an episode has two records, or a value is missing.
    """
    ours, theirs = _by_seed(method, value), _by_seed(baseline, value)
    if set(theirs) not in ({None}, set(ours)):
        raise DataError(
            f"training seeds differ: {_listed(ours)} and {_listed(theirs)}; compare the same seeds, or with a baseline "
            "that was not trained"
        )
    seeds = sorted(ours, key=lambda seed: -1 if seed is None else seed)
    episodes = sorted(ours[seeds[0]])
    for part in (*ours.values(), *theirs.values()):
        if sorted(part) != episodes:
            odd = sorted(set(part) ^ set(episodes))[0]
            raise DataError(f"a paired difference needs the same episodes: {odd[1]} {odd[2]} is not in all of them")
    difference = {
        seed: {key: value - theirs[seed if seed in theirs else None][key] for key, value in ours[seed].items()}
        for seed in seeds
    }
    order = list(ROLE_TITLES)
    roles: dict[str, Role] = {domain: role for role, domain, _ in sorted(episodes, key=lambda key: order.index(key[0]))}
    return PairedDifferences(
        tuple(seeds),
        roles,
        {
            domain: np.array([[difference[seed][key] for key in episodes if key[1] == domain] for seed in seeds])
            for domain in roles
        },
    )


def verdict(interval: Interval, margin: float = 0.0) -> Verdict:
    """Whether the claim "the difference is above `margin`" holds, as far as the interval tells.

    Its unit is the training seed: one alone decides nothing.
    """
    if len(interval.per_seed) == 1:
        return "undecided"
    if interval.low > margin:
        return "holds"
    return "does not hold" if interval.high <= margin else "undecided"


_Episode = tuple[Role, str, int]


def _by_seed(records: Iterable[Record], value: str) -> dict[int | None, dict[_Episode, float]]:
    records = list(records)
    kinds = sorted({f"{record.predictor} by {record.adaptation}" for record in records})
    if len(kinds) != 1:
        found = ", ".join(kinds) or "none at all"
        raise DataError(f"a paired difference takes records of one predictor and adaptation, got {found}")
    table: dict[int | None, dict[_Episode, float]] = {}
    for record in records:
        of_seed, key = table.setdefault(record.seed, {}), (record.role, record.domain, record.index)
        if key in of_seed:
            raise DataError(f"two records of {record.predictor} on {record.domain} {record.index}, seed {record.seed}")
        of_seed[key] = getattr(record, value)
        if np.isnan(of_seed[key]):
            raise DataError(f"{record.predictor} has no {value} on {record.domain} {record.index}")
    return table


def _listed(table: dict[int | None, dict[_Episode, float]]) -> str:
    return ", ".join(sorted(map(str, table)))
