"""What a report is about, and what more than one of its sections tells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xarray as xr

from featstore.analysis import plots
from featstore.analysis.correlate import correlate_domains, correlate_protocols
from featstore.analysis.predict import expensive, predictors
from featstore.analysis.rank import rank_models
from featstore.analysis.selection import in_domain_datasets, is_independent, reference_of
from featstore.analysis.versus import compare_predictors
from featstore.reporting import facts
from featstore.results import check_results

_NEEDED = ("low", "high", "seconds", "stage", "kind")


@dataclass(eq=False)
class Study:
    """Results with how they are looked at; what takes time is computed once, when first asked for.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()`
    reference : protocol that the others are drawn against
    baseline : the BN mode that is looked at where there is no word of BN modes
    similarity : of `open_similarity()`, if features were compared
    records : folder of the records, in which is kept what was told of each test image
    skip_errors : of these, leave out damaged ones
    """

    results: xr.Dataset
    reference: str
    baseline: str
    similarity: xr.Dataset | None = None
    records: Path | None = None
    skip_errors: bool = False

    @classmethod
    def of(
        cls,
        results: xr.Dataset,
        *,
        reference: str | None,
        similarity: xr.Dataset | None,
        records: Path | None = None,
        skip_errors: bool = False,
    ) -> Study:
        """The study of these results, in BN mode `eval` if there is such.

        Raises
        ------
        ValueError
            These are no results, there is none at all, or no protocol of the name `reference`.
        """
        check_results(results, *_NEEDED)
        if not results["score"].notnull().any():
            raise ValueError("results hold no cell; there is nothing to report")
        modes = [str(mode) for mode in results["bn_mode"].values]
        baseline = "eval" if "eval" in modes else modes[0]
        reference = reference_of(results, reference, baseline)
        return cls(results, reference, baseline, similarity, records, skip_errors)

    @property
    def how(self) -> dict[str, Any]:
        """Arguments of every analysis of one BN mode."""
        return {"bn_mode": self.baseline}

    @cached_property
    def labels(self) -> dict[str, str]:
        """Name of each protocol as it is shown, with a dagger where it is transductive."""
        return {
            str(name): plots.protocol_label(self.results, str(name), self.baseline)
            for name in self.results["protocol"].values
        }

    @cached_property
    def n_independent(self) -> int:
        """Models that are neither early checkpoints nor random weights."""
        return int(is_independent(self.results).sum())

    @cached_property
    def choices(self) -> list[str]:
        """Choices of models that differ."""
        every = self.n_independent == self.results.sizes["model"]
        return ["independent"] if every else ["independent", "all"]

    @cached_property
    def ranking(self) -> xr.Dataset:
        """The answer of `rank_models`."""
        return rank_models(self.results, bn_mode=self.baseline)

    @cached_property
    def ordered(self) -> xr.Dataset:
        """The results, best model first."""
        return self.results.sel(model=self.ranking["model"].values)

    @cached_property
    def correlations(self) -> dict[str, xr.Dataset]:
        """The answer of `correlate_protocols` by choice of models."""
        return {
            models: correlate_protocols(self.results, models=models, by_dataset=False, **self.how)
            for models in ("independent", "all")
        }

    @cached_property
    def homes(self) -> list[str]:
        """Names of the in-domain datasets."""
        return in_domain_datasets(self.results)

    @property
    def home(self) -> str:
        """The in-domain dataset, or else the first, where one has to be chosen."""
        return self.homes[0] if self.homes else str(self.results["dataset"].values[0])

    @cached_property
    def domains(self) -> dict[str, xr.Dataset] | None:
        """The answer of `correlate_domains` by choice of models; None where there is no other."""
        if not self.homes or self.results.sizes["dataset"] < 2:
            return None
        return {
            models: correlate_domains(
                self.results, in_domain=self.homes[0], models=models, **self.how
            )
            for models in ("independent", "all")
        }

    @cached_property
    def targets(self) -> list[xr.Dataset]:
        """The answer of `predictors` for each expensive protocol, the most expensive first."""
        return [
            predictors(
                self.results,
                name,
                correlations=self.correlations["independent"],
                bn_mode=self.baseline,
            )
            for name in expensive(self.results, self.reference, self.baseline)
        ]

    @cached_property
    def rivals(self) -> xr.Dataset | None:
        """The answer of `compare_predictors` for the most expensive protocol; None of fewer than
        two others.
        """
        if self.results.sizes["protocol"] < 3:
            return None
        return compare_predictors(self.results, self.targets[0].attrs["target"], **self.how)

    @cached_property
    def shift(self) -> list[dict[str, Any]]:
        """What each BN mode but the baseline changes."""
        return facts.bn_shift(self.results, self.baseline)

    @cached_property
    def counted(self) -> xr.DataArray:
        """Cells that count once, in the BN modes that there are for them."""
        return facts.counted(self.results, self.baseline)
