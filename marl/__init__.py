"""The engine: it knows no algorithm and no environment by name."""

from importlib.util import find_spec
from pathlib import Path

_HERE = Path(__file__).resolve().parents[1]

for _name in ("algos", "configs", "envs"):
    _found = find_spec(_name)
    _origin = _found.origin if _found else None
    if _origin is None or Path(_origin).resolve().parents[1] != _HERE:
        _places = _found.submodule_search_locations if _found else None
        raise ImportError(
            f"{_name}: {next(iter(_places or ()), 'nothing')} hides the folder of that name in {_HERE}; "
            f"rename it, start in another folder, or set PYTHONSAFEPATH=1"
        )
