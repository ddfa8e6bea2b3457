"""Which version of a package is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import flashvideo_ray
from flashvideo_ray.errors import InputError

OWN = "flashvideo-ray"


class NotInstalledError(InputError):
    """A package that is needed has no version here. The message says how to install it."""


def version_of(package: str) -> str:
    """The version of an installed package, by its name for pip. Raises NotInstalledError.

    This one need not be installed: `ray job submit --working-dir .` brings a checkout of it.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        if package == OWN:
            return flashvideo_ray.__version__
        raise NotInstalledError(f"{package} is not installed here: pip install {package}") from None
