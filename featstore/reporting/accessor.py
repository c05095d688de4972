"""`results.featstore`: what can be asked of a Dataset of results, as methods of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import xarray as xr

from featstore.analysis.compare import compare_protocols
from featstore.analysis.correlate import correlate_domains, correlate_protocols
from featstore.analysis.plots import heat_map, scatter
from featstore.analysis.predict import predictors
from featstore.analysis.rank import rank_models
from featstore.analysis.selection import Models
from featstore.analysis.text_tables import text_table
from featstore.analysis.two_models import compare_two_models
from featstore.reporting.page import report
from featstore.results import check_results

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _method(
    function: Callable[Concatenate[xr.Dataset, _P], _T],
) -> Callable[Concatenate[Accessor, _P], _T]:
    """A function of results as a method: the same options, and the same documentation."""

    @functools.wraps(function)
    def method(self: Accessor, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return function(self._results, *args, **kwargs)

    return method


class Accessor:
    """What featstore can say of results, as `results.featstore.rank()`.

    It is there on every Dataset once featstore is imported. Apart from `compare` and `table`,
    methods are the functions of featstore of the same options, and say the same.

    Parameters
    ----------
    results : Dataset with dims (model, dataset, bn_mode, protocol), of `open_results()` or of
        `xr.open_zarr("data/results.zarr")`

    Raises
    ------
    ValueError
        The Dataset is none of results, holds a cell twice, or scores that cannot be.
    """

    def __init__(self, results: xr.Dataset) -> None:
        check_results(results, seeds=True)
        self._results = results.compute()  # what is read from a file is read once, not by each

    rank = _method(rank_models)
    correlate = _method(correlate_protocols)
    domains = _method(correlate_domains)
    predictors = _method(predictors)
    report = _method(report)
    heat_map = _method(heat_map)
    scatter = _method(scatter)

    def compare(
        self, a: str, b: str, *, bn_mode: str = "eval", root: str | Path | None = None
    ) -> xr.Dataset:
        """How two models differ, or two protocols: the first less the second, with intervals.

        Parameters
        ----------
        a, b : two models, on each dataset and by each protocol as of `compare_two_models`; or two
            protocols, over models as of `compare_protocols` with `b` as the reference
        bn_mode : the one BN mode looked at
        root : folder of the records, from which two models are compared on the same test images; by
            default the one beside the file that the results were opened from, if it is there

        Raises
        ------
        ValueError
            The names are neither two models nor two protocols.
        """
        for dim in ("model", "protocol"):
            if not {a, b} <= {str(name) for name in self._results[dim].values}:
                continue
            if dim == "protocol":
                return compare_protocols(self._results, b, [a], bn_mode=bn_mode)
            folder = self._records() if root is None else root
            return compare_two_models(self._results, a, b, bn_mode=bn_mode, root=folder)
        known = {str(name) for dim in ("model", "protocol") for name in self._results[dim].values}
        lacking = ", ".join(sorted({a, b} - known)) or f"{a} and {b} together"
        raise ValueError(
            f"a and b must be two models, or two protocols, of these results; {lacking} are not. "
            f"They have the models {', '.join(map(str, self._results['model'].values))}"
        )

    def table(
        self,
        form: str = "markdown",
        *,
        protocol: str | None = None,
        models: Models = "independent",
        bn_mode: str = "eval",
        root: str | Path | None = None,
    ) -> str:
        """Scores as a table in `markdown` or `latex`, of the options of `text_table`.

        Parameters
        ----------
        root : folder of the records, from which it is told what is not separable from the best; by
            default as in `compare`
        """
        return text_table(
            self._results, form=form, protocol=protocol, models=models, bn_mode=bn_mode,
            root=self._records() if root is None else root,
        )  # fmt: skip

    def _records(self) -> Path | None:
        """Folder of the records beside the file that the results were opened from."""
        source = self._results.encoding.get("source")
        beside = Path(str(source)).with_suffix("") if source else None
        return beside if beside and beside.is_dir() else None
