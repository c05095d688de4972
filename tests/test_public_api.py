import inspect
import subprocess
import sys

import featstore


def test_public_names_are_sorted_and_all_load():
    assert list(featstore.__all__) == sorted(featstore.__all__)
    for name in featstore.__all__:
        assert getattr(featstore, name) is not None


def test_public_names_are_what_they_say_and_documented():
    for name in featstore.__all__:
        thing = getattr(featstore, name)
        assert inspect.isclass(thing) or inspect.isfunction(thing) or inspect.ismodule(thing), name
        assert inspect.getdoc(thing), name
        assert thing.__name__.removeprefix("featstore.") == name


def test_dir_lists_the_public_names():
    assert set(featstore.__all__) <= set(dir(featstore))


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, featstore; "
        "print([m for m in ('torch', 'cupy', 'typer', 'zarr', 'xarray', 'numpy') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_no_torch():
    code = (
        "import sys, featstore.cli as c\n"
        "sys.argv = ['featstore', '--help']\n"
        "try:\n    c.main()\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
