"""The engine: it knows no algorithm and no environment by name."""

from importlib.util import find_spec
from pathlib import Path


def _refuse_others(*names: str) -> None:
    """Python looks into the current folder first: a folder there of the same name would be imported instead of ours."""
    here = Path(__file__).resolve().parents[1]
    for name in names:
        found = find_spec(name)
        places = list(found.submodule_search_locations or ()) if found else []
        if found is None or found.origin is None or Path(found.origin).resolve().parents[1] != here:
            hiding = places[0] if places else "nothing"
            advice = "rename it, start in another folder, or set PYTHONSAFEPATH=1"
            raise ImportError(f"{name}: {hiding} hides the folder of that name in {here}; {advice}")


_refuse_others("algos", "configs", "envs")
