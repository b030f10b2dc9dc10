"""Durations as configuration files write them."""

from __future__ import annotations

import contextlib
import math
import re

from flowmc.registry import ConfigError

__all__ = ["seconds_of"]


def seconds_of(value: float | str, where: str) -> float:
    """Return a duration in seconds: a number, or text such as "23h30m", "90s", "1d".

    Raises:
        ConfigError: naming ``where`` for anything else, and for durations that are not positive.
    """
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    seconds = math.nan
    if isinstance(value, str):
        compact = value.replace(" ", "").lower()
        parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", compact)
        if parts and "".join(number + unit for number, unit in parts) == compact:
            seconds = sum(float(number) * units[unit] for number, unit in parts)
    else:
        with contextlib.suppress(OverflowError):
            seconds = float(value)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ConfigError(f'{where} = {value!r}: should be seconds, or a time such as "23h30m"')
    return seconds
