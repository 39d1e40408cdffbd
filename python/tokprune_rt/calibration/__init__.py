"""Policies found without training and without labels.

`calibrate` tries policies on texts like those of the user, compares what comes out with the dense
model, measures the time on this machine, and writes the best ones as profiles of one policy.
"""

from .calibrate import calibrate
from .judge import Quality
from .outcome import Calibration, Measured
from .sample import Settings

__all__ = ["Calibration", "Measured", "Quality", "Settings", "calibrate"]
