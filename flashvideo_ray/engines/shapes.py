"""Whether frames of one size can become a clip of another."""

from __future__ import annotations

_MOST_STRETCHED = 1.15  # of a preview whose shape is not the clip's


def refusal(preview: tuple[int | None, int | None], clip: tuple[int | None, int | None]) -> str | None:
    """Why a preview of that height and width makes no such clip, or None. What is None is not known."""
    height, width = preview
    high, wide = clip
    if height is None or width is None or high is None or wide is None:
        return None
    if height > high or width > wide:
        return f"{height}x{width} is larger than the clip of {high}x{wide}"
    if not 1 / _MOST_STRETCHED <= (height / width) / (high / wide) <= _MOST_STRETCHED:
        return f"{height}x{width} would be stretched to the clip's {high}x{wide}"
    return None
