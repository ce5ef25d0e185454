"""Settings of what is changed or left out between a log line and what is sent of it."""

from typing import Literal

from pydantic import Field

from dsobs.config.fields import Model
from dsobs.config.log_expression import FieldName, FieldPair, FieldValue, LogExpression, LogRateLimit, LogSample

RedactKind = Literal["api_key", "bearer", "email", "phone", "card", "prompt"]


class Redact(Model):
    """What is replaced by its kind in brackets, such as `[email]`, before a record is sent."""

    kinds: tuple[RedactKind, ...] = ()
    """`api_key` (of the known forms, and behind words such as api_key= and password=), `bearer` (behind Bearer and
    Basic), `email`, `phone` (international, or written as in North America), `card` (numbers of payment cards, by their
    check digit), `prompt` (what users send to the model, in the lines and fields that vLLM and its clients write it
    in). Empty: nothing is redacted."""
    fields: tuple[FieldName, ...] = ()
    """Only these fields and what is in them. Empty: all fields."""
    except_fields: tuple[FieldName, ...] = ()
    """These fields and what is in them are left as they are."""


class LogTransform(Model):
    """What is left out of a log or changed in it. Nothing, unless set; what is left out is counted by its reason in
    `dsobs_log_left_out_records_total`."""

    min_level: Literal["", "debug", "info", "warning", "error", "critical"] = ""
    """Records of a lower level are left out. Empty: none."""
    without_level: Literal["", "keep", "drop"] = ""
    """Records that have no level, where `min_level` is set: `keep` or `drop`. Empty: `keep`."""
    keep: tuple[LogExpression, ...] = ()
    """If there are any, only records that match one of them are sent: `FIELD OP VALUE`, joined by `and` and `or`, where
    OP is =, !=, =~, !~ (RE2, all of the text), <, <=, > or >=. A field that is not there is empty."""
    drop: tuple[LogExpression, ...] = ()
    """Records that match one of them are left out, such as `url.path =~ "/(health|metrics)"`."""
    sample: tuple[LogSample, ...] = ()
    """`SHARE EXPRESSION`, such as `0.1 log.level = "INFO"`: of the records that match (all, without an expression) only
    this share is sent, chosen by their bytes, so that it is the same ones if they are read again. The first that
    matches counts."""
    rate_limit: tuple[LogRateLimit, ...] = ()
    """`NUMBER EXPRESSION`, such as `100 log.origin.file.name = "launcher.py"`: of the records that match (all, without
    an expression) at most so many are sent for each second of the log's own time, all files together; a backlog that
    is read fast loses no more by it. The first that matches counts."""
    remove: tuple[FieldName, ...] = ()
    """Fields that are taken out, with what is in them."""
    rename: tuple[FieldPair, ...] = ()
    """`OLD=NEW` each, such as `user_id=user.id`; a field of the new name that is there already is replaced."""
    add: tuple[FieldValue, ...] = ()
    """`NAME=VALUE` each, such as `labels.site=eu-1`; a field of that name that is there already is replaced."""
    redact: Redact = Redact()
    max_field_bytes: int = Field(default=0, ge=0)
    """Longer texts are cut there, and `labels.cut` names their fields. 0: none."""
    max_record_bytes: int = Field(default=0, ge=0)
    """Records of longer lines are left out. 0: none."""
