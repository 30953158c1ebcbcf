"""Contract tests for mixers, yours included: ``check_mixer(lambda: MyMixer(...), ...)``."""

from subquad.testing.contract import check_mixer
from subquad.testing.probe import CheckResult, MixerFault, MixerReport

__all__ = ["CheckResult", "MixerFault", "MixerReport", "check_mixer"]
