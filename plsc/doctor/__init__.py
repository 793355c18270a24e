"""What is wrong with this machine or cluster, before a run finds it: plsc.diagnose."""

from plsc.doctor.checks import Finding, Site, check
from plsc.doctor.diagnosis import Diagnosis, Row, diagnose

__all__ = ["Diagnosis", "Finding", "Row", "Site", "check", "diagnose"]
