"""The made-up studies of tests/analysis, which is no package, so they are found by their path."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_PLACE = Path(__file__).parents[1] / "analysis" / "conftest.py"
_spec = spec_from_file_location("made_up_studies", _PLACE)
_studies = module_from_spec(_spec)
_spec.loader.exec_module(_studies)

results = _studies.results
make_study = _studies.make_study
