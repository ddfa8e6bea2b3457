"""Kinds of values that settings have, and the base of their models."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Stage = Literal["text", "preview", "score", "rate", "refine"]
STAGES: tuple[Stage, ...] = get_args(Stage)


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed; yes, no, on, off, true and false are none")
    return value


Integer = Annotated[int, BeforeValidator(_no_truth_value)]
Real = Annotated[float, BeforeValidator(_no_truth_value), Field(allow_inf_nan=False)]
# The upper limits are beyond all use: what is above them is a slip that would otherwise be found by filling the memory.
Positive = Annotated[Integer, Field(gt=0, le=1_000_000)]
Pixels = Annotated[Integer, Field(gt=0, le=16_384)]
Candidates = Annotated[Integer, Field(le=10_000)]  # of one prompt
Steps = Annotated[Integer, Field(gt=0, lt=1000)]
NonNegative = Annotated[Real, Field(ge=0, le=1e9)]
Seconds = Annotated[Real, Field(gt=0, le=1e9)]  # 30 years


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(value, allow_nan=False, default=str)
    except (TypeError, ValueError) as error:  # NaN is not even equal to itself: the run could not be taken up again
        raise ValueError(f"options are plain finite values, as JSON has them: {error}") from None
    return value


Options = Annotated[dict[str, Any], AfterValidator(_plain)]


class Frozen(BaseModel):
    """Immutable, and closed: a key that is not declared is an error, not a silent nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")
