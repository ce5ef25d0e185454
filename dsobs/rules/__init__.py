"""Standard Prometheus rule files, evaluated here: files, templates, the alert state machine and its state on disk."""

from dsobs.rules.evaluator import Evaluator
from dsobs.rules.files import AlertRule, Group, Problem, RecordingRule, RuleFileError, load, load_text
from dsobs.rules.persistence import SCHEMA, SavedAlert, Snapshot, restore, save
from dsobs.rules.shipped import files_for

__all__ = [
    "SCHEMA",
    "AlertRule",
    "Evaluator",
    "Group",
    "Problem",
    "RecordingRule",
    "RuleFileError",
    "SavedAlert",
    "Snapshot",
    "files_for",
    "load",
    "load_text",
    "restore",
    "save",
]
