"""Which version of a package is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flashvideo_ray.errors import InputError


class NotInstalledError(InputError):
    """A package can be imported, perhaps, and nothing says which version it is: a checkout on PYTHONPATH, say."""

    mend = f"run `pip install -e .` in {Path(__file__).parents[1]}"

    def __init__(self, package: str):
        super().__init__(f"{package} is not installed here, so no clip could say what made it; {self.mend}")
        self.package = package


def version_of(package: str) -> str:
    """The version of an installed package, by its name for pip. Raises NotInstalledError."""
    try:
        return version(package)
    except PackageNotFoundError:
        raise NotInstalledError(package) from None
