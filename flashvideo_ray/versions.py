"""Which version of a package is installed, and which one this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from flashvideo_ray.errors import InputError

OWN = "flashvideo-ray"
OWN_VERSION = "0.1.0"  # as in pyproject.toml


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
            return OWN_VERSION
        raise NotInstalledError(f"{package} is not installed here: pip install {package}") from None
