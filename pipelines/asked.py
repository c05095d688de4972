"""What a study asks, and the part of it that a command line asks for."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import xarray as xr

import featstore

Expand = Callable[[Iterable[str]], list[str]]


@dataclass(frozen=True)
class Study:
    """Models x datasets x protocols, by names that featstore knows, those of sets as well.

    Attributes
    ----------
    title : of the report ; models : all of these, on all datasets
    parts : for each group of datasets, what is asked of it off the store: (datasets, protocols)
    trainings : protocols that train on images ; trained_on : datasets of these
    more_trainings : those that are run only where they are asked for by name
    reference : protocol that the others are compared with at the end
    answer : prints what else the study asks of its results
    """

    title: str
    models: tuple[str, ...]
    parts: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    trainings: tuple[str, ...] = ()
    more_trainings: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = ()
    bn_modes: tuple[str, ...] = ("eval",)
    seeds: tuple[int, ...] = (0,)
    reference: str = ""
    answer: Callable[[xr.Dataset], None] = lambda results: None

    def expanded(self) -> Study:
        """The same with each set's name replaced by those of its members."""
        return replace(
            self,
            models=tuple(featstore.models.expand(self.models)),
            parts=tuple(
                (
                    tuple(featstore.datasets.expand(datasets)),
                    tuple(featstore.probes.expand(protocols)),
                )
                for datasets, protocols in self.parts
            ),
            trainings=tuple(featstore.finetuning.expand(self.trainings)),
            more_trainings=tuple(featstore.finetuning.expand(self.more_trainings)),
            trained_on=tuple(featstore.datasets.expand(self.trained_on)),
        )


def narrowed(
    study: Study,
    models: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    protocols: Sequence[str] | None = None,
    bn_modes: Sequence[str] | None = None,
) -> Study:
    """The part of a study that is asked for, each set's name replaced by those of its members.

    Raises
    ------
    ValueError
        Something that is asked for is no part of the study, or nothing is left of it.
    LookupError
        A protocol has no such setting.
    """
    study = study.expanded()
    if models:
        study = replace(
            study, models=_among("model", models, study.models, featstore.models.expand)
        )
    if bn_modes:
        study = replace(study, bn_modes=_among("BN mode", bn_modes, study.bn_modes, list))
    if datasets:
        every = [*(one for names, _ in study.parts for one in names), *study.trained_on]
        kept = _among("dataset", datasets, every, featstore.datasets.expand)
        study = replace(
            study,
            parts=tuple((both(names, kept), of) for names, of in study.parts),
            trained_on=both(study.trained_on, kept),
        )
    if protocols:
        kept = _protocols(study, protocols)
        trained = featstore.finetuning.PROTOCOLS
        study = replace(
            study,
            parts=tuple((names, _versions(of, kept)) for names, of in study.parts),
            trainings=tuple(one for one in kept if one.partition("+")[0] in trained),
        )
    parts = tuple((names, of) for names, of in study.parts if names and of)
    study = replace(study, parts=parts)
    if not study.trained_on or not study.trainings:
        study = replace(study, trained_on=(), trainings=())
    if not parts and not study.trainings:
        raise ValueError("the study asks none of these protocols of any of these datasets")
    return study


def _among(
    kind: str, wanted: Sequence[str], members: Sequence[str], expand: Expand
) -> tuple[str, ...]:
    """Members that are meant by their name, without @TRANSFORM or with it, or by that of a set."""
    found: dict[str, None] = {}
    for name in wanted:
        meant = [one for one in members if name in (one, one.partition("@")[0])]
        meant = meant or list(both(expand([name]), members))
        if not meant:
            raise ValueError(f"the study has no {kind} {name!r}.{_near(name, members)}")
        found |= dict.fromkeys(meant)
    return both(members, found)


def _protocols(study: Study, wanted: Sequence[str]) -> tuple[str, ...]:
    """Protocols of a study that are meant by their name, that of a set, or of another setting."""
    members = list(dict.fromkeys([*(p for _, of in study.parts for p in of), *study.trainings]))
    known = [*members, *study.more_trainings]
    bases = {one.partition("+")[0] for one in known}
    found: dict[str, None] = {}
    for name in wanted:
        base, changed, _ = name.partition("+")
        module = (
            featstore.finetuning if base in featstore.finetuning.PROTOCOLS else featstore.probes
        )
        if name in known or (changed and base in bases):
            found[module.get(name).name] = None
            continue
        sets = {one: kind.sets for kind in (featstore.probes, featstore.finetuning)
                for one, kind in kind.PROTOCOLS.items()}  # fmt: skip
        meant = [one for one in members if name in sets.get(one, ())]
        if not meant:
            raise ValueError(f"the study has no protocol {name!r}.{_near(name, known)}")
        found |= dict.fromkeys(meant)
    return tuple(found)


def _versions(members: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Of what is wanted, what is a member, or a member with another setting."""
    bases = {one.partition("+")[0] for one in members}
    return tuple(
        one for one in wanted if one in members or ("+" in one and one.partition("+")[0] in bases)
    )


def both(names: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    """Names that are among others as well, once each."""
    known = {*others}
    return tuple(dict.fromkeys(one for one in names if one in known))


def _near(name: str, members: Iterable[str]) -> str:
    """Question whether names that come near were meant, or how many there are."""
    bases = dict.fromkeys(part for one in members for part in (one, one.partition("@")[0]))
    near = difflib.get_close_matches(name.partition("@")[0], list(bases), n=3)
    return f" Did you mean {' or '.join(near)}?" if near else f" It has {', '.join(members)}"
