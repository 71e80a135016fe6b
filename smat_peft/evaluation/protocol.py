"""Measure predictors on few-shot episodes of several domains, all of them on the very same episodes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm

from smat_peft.episodes.cache import ImageCache
from smat_peft.episodes.domain import Domain, Split
from smat_peft.episodes.draws import MAX_QUERIES
from smat_peft.episodes.episode import Episode
from smat_peft.episodes.identity import describe_episodes, describe_images, digest
from smat_peft.episodes.images import ImageTransform
from smat_peft.episodes.sampling import EpisodeSampler
from smat_peft.errors import ConfigurationError, DataError
from smat_peft.evaluation.calibration import Calibration
from smat_peft.evaluation.fitting import RateSelection, adapted, fit, fit_on_test_tasks, with_rates
from smat_peft.evaluation.journal import Journal
from smat_peft.evaluation.manifest import ListedEpisodes, read_manifest
from smat_peft.evaluation.measuring import Measured, Measurement, Source
from smat_peft.evaluation.predictors import FeatureFunction, Predictor, as_predictors
from smat_peft.evaluation.processes import is_main, shared, spread
from smat_peft.evaluation.record_files import IMAGES, SPLITS
from smat_peft.evaluation.records import ROLE_TITLES, Evaluation, Role
from smat_peft.few_shot.adaptation import PROTOTYPE
from smat_peft.few_shot.fine_tuning import Adaptation
from smat_peft.files import sha256_of

EPISODES_AT_A_TIME = 8  # of each of several processes, which wait for one another after that


class EvaluationDomain(NamedTuple):
    """A domain, what it is for, and whose classes to use: in-distribution the held-out ones, else usually `"all"`.

    Its own numbers of classes and of images of each class, where it has them, go before those of [`evaluate`].
    """

    role: Role
    domain: Domain
    split: Split
    ways: int | None = None
    shots: int | None = None
    queries: int | None = None


def evaluate(
    model: nn.Module | FeatureFunction | Mapping[str, Predictor | nn.Module],
    domains: Sequence[EvaluationDomain | tuple[Role, Domain, Split]],
    *,
    transform: ImageTransform,
    episodes: int = 100,
    ways: int | None = None,
    shots: int | None = None,
    queries: int = MAX_QUERIES,
    seed: int = 0,
    manifest: str | Path | None = None,
    adaptation: Adaptation = PROTOTYPE,
    rate_selection: RateSelection = "given",
    validation: Sequence[Episode] = (),
    training_seed: int | None = None,
    cache: ImageCache | None = None,
    progress: bool = True,
    accelerator: Accelerator | None = None,
    output_dir: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Accuracy, log loss and calibration on episodes of each domain (METHOD 11).

    Args:
        model: A model, with an adapter of any method or none, which is measured as [`default_predictors`] says and
            comes back as it was; a function from pixels `[N, 3, H, W]` to features `[N, D]`, which is measured by
            prototypes; or predictors by name (a model among them stands for itself, a feature function goes through
            [`feature_predictor`]), the first of which is the baseline of the differences in a report.
        domains: Role, domain and split of each domain, and its own ways, shots and queries if any; names must differ.
        transform: The model's image transform.
        episodes: Number of episodes of each domain.
        ways: Number of classes; variable (METHOD 10) if not given.
        shots: Support images of each class; variable (METHOD 10) if not given.
        queries: Most query images of each class.
        seed: Which episodes. A domain's depend on it and on the domain's name, not on the other domains.
        manifest: A file of [`write_manifest`], whose episodes of the domains are taken in place of any that `episodes`,
            `ways`, `shots`, `queries` and `seed` would give.
        adaptation: What predictors made of models do on a support set.
        rate_selection: How its learning rate is chosen: `"given"` in `adaptation`; `"auto"` for each episode, on images
            left out of its support; on the `"validation"` episodes; or by the published protocol for each domain on its
            first five `"test_tasks"` with their query labels, which every table then says.
        validation: Episodes of validation classes. On them a temperature is fitted to each predictor, but not where
            rates are chosen on test tasks.
        training_seed: What records say of the training seed.
        cache: Keeps prepared images from one episode to the next; none are kept if not given.
        progress: Whether to show a bar.
        accelerator: Spreads the episodes over its processes, all of which must call this alike and get the same. Models
            must be on its device. Without it this process does all.
        output_dir: Keeps the records in this folder, as [`write_records`] does, and goes on where an evaluation was
            cut; episodes that it holds already are not measured again.
        settings: What else the records depend on (which adapter, say); a folder with others is refused.

    Raises:
        DataError: Two domains of the same name, one without enough classes in its split, or a manifest that does not
            fit the domains.
        ConfigurationError: No predictor, domain or episode, an unknown role, logits of a wrong shape, or a learning
            rate to choose without validation episodes.
        CheckpointError: `output_dir` holds records that were made with other settings.
    """
    predictors = adapted(as_predictors(model), adaptation, rate_selection)
    entries = [EvaluationDomain(*entry) for entry in domains]
    if not predictors or not entries or episodes < 1:
        raise ConfigurationError(
            f"nothing to evaluate: {len(predictors)} predictors on {episodes} episodes of {len(entries)} domains"
        )
    _check(entries)
    if rate_selection == "validation" and adaptation.kind != "prototype" and not len(validation):
        raise ConfigurationError(
            "a learning rate is to be chosen on validation episodes, and there are none: name the domains that were "
            "trained on, or give a learning rate"
        )
    if manifest is None:
        shape: dict[str, Any] = {"ways": ways, "shots": shots, "queries": queries, "seed": seed}
        samplers = episode_samplers(entries, transform=transform, cache=cache, **shape)
        sources = {name: Source(sampler, range(episodes)) for name, sampler in samplers.items()}
        drawn = {"episodes": episodes, **shape}
    else:
        sources = _listed(manifest, entries, transform, cache)
        drawn = {"manifest": sha256_of(Path(manifest))}
    all_settings: dict[str, Any] = {
        **drawn,
        "image_size": transform.size,
        "adaptation": asdict(adaptation),
        "rate_selection": rate_selection,
        "validation": digest(describe_episodes(validation)),
        SPLITS: {entry.domain.name: entry[2:] for entry in entries},
        IMAGES: {
            entry.domain.name: digest([str(transform), describe_images(entry.domain, entry.split)]) for entry in entries
        },
        **(settings or {}),
    }
    folder = Path(output_dir) if output_dir is not None and is_main(accelerator) else None
    journal = Journal(folder, list(predictors), training_seed, adaptation.kind, all_settings)
    finished, fitted, measured = shared((journal.finished, journal.fitted, journal.measured), accelerator)
    left = [entry for entry in entries if entry.domain.name not in finished.domains]
    if left:
        fitted = fitted or fit(predictors, validation, rate_selection, accelerator)
        predictors = with_rates(predictors, fitted.learning_rates)
        journal.begin(fitted)
    temperatures = finished.temperatures if fitted is None else fitted.temperatures
    names = {entry.domain.name for entry in left}
    measured = [each for each in measured if each.record.domain in names]
    done = {(each.record.domain, each.record.index) for each in measured}
    processes = 1 if accelerator is None else accelerator.num_processes
    at_a_time = 1 if processes == 1 else EPISODES_AT_A_TIME * processes
    bar = tqdm(
        total=sum(len(sources[entry.domain.name].numbers) for entry in left),
        initial=len(done),
        desc="evaluating",
        unit="episode",
        disable=not progress or not is_main(accelerator),
    )
    with bar:
        for role, domain, *_ in left:
            bar.set_postfix_str(domain.name)
            source, tuned = sources[domain.name], predictors
            todo = [number for number in source.numbers if (domain.name, number) not in done]
            if todo and rate_selection == "test_tasks":
                tuned = fit_on_test_tasks(predictors, source)
            measurement = Measurement(tuned, temperatures, source.episodes, role, training_seed, adaptation.kind)
            for start in range(0, len(todo), at_a_time):
                found = spread(measurement, todo[start : start + at_a_time], accelerator)
                journal.add(found)
                measured += chain.from_iterable(found)
                bar.update(len(found))
    evaluation = _evaluation(measured, finished, list(sources), list(predictors), temperatures, all_settings)
    if left:
        journal.finish(evaluation)
    return evaluation


def episode_samplers(
    domains: Iterable[EvaluationDomain],
    *,
    transform: ImageTransform,
    ways: int | None = None,
    shots: int | None = None,
    queries: int = MAX_QUERIES,
    seed: int = 0,
    cache: ImageCache | None = None,
) -> dict[str, EpisodeSampler]:
    """By the domain's name, what [`evaluate`] draws its episodes from; the arguments are the same."""
    return {
        entry.domain.name: EpisodeSampler(
            [entry.domain],
            entry.split,
            entry.ways or ways,
            entry.shots or shots,
            entry.queries or queries,
            domain_seed(seed, entry.domain.name),
            transform=transform,
            augment=False,
            cache=cache,
        )
        for entry in domains
    }


def domain_seed(seed: int, name: str) -> int:
    """Seed of a domain's episodes: other ways and shots for each domain, so that their means are independent."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "little")


def _check(entries: Sequence[EvaluationDomain]) -> None:
    names = [entry.domain.name for entry in entries]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"domains must have different names; more than one is called {', '.join(repeated)}")
    for entry in entries:
        if entry.role not in ROLE_TITLES:
            known = ", ".join(ROLE_TITLES)
            raise ConfigurationError(f"domain {entry.domain.name!r}: unknown role {entry.role!r}; roles are {known}")


def _listed(
    manifest: str | Path, entries: Sequence[EvaluationDomain], transform: ImageTransform, cache: ImageCache | None
) -> dict[str, Source]:
    found = read_manifest(manifest, {entry.domain.name: (entry.domain, entry.split) for entry in entries})
    return {
        entry.domain.name: Source(
            ListedEpisodes(entry.domain, entry.split, found[entry.domain.name], transform, cache),
            [description.index for description in found[entry.domain.name]],
        )
        for entry in entries
    }


def _evaluation(
    measured: Iterable[Measured],
    finished: Evaluation,
    domains: Sequence[str],
    predictors: Sequence[str],
    temperatures: Mapping[str, float],
    settings: Mapping[str, Any],
) -> Evaluation:
    """All records and sums in one order, whatever the order in which they were measured."""
    finished = finished.of_domains(domains)
    wanted = sorted(measured, key=lambda each: (domains.index(each.record.domain), each.record.index))
    calibration: dict[tuple[str, str], Calibration] = dict(finished.calibration)
    for record, of_episode in wanted:
        key = (record.predictor, record.domain)
        calibration[key] = calibration[key] + of_episode if key in calibration else of_episode
    records = [*finished.records, *(each.record for each in wanted)]
    records.sort(key=lambda record: (domains.index(record.domain), record.index, predictors.index(record.predictor)))
    return Evaluation(records, calibration, temperatures, settings)
