"""Fields taken out, renamed, added and cut."""

from typing import Any

from dsobs.config.log_transform import LogTransform
from dsobs.logs.metrics import CUT_FIELDS
from dsobs.logs.record import Record
from dsobs.logs.transforms.fields import Fields, remove, value_of


class Change:
    """Changes fields, in the order remove, rename, add."""

    needs_fields = True

    def __init__(self, settings: LogTransform) -> None:
        self._remove = settings.remove
        self._rename = [tuple(pair.split("=", 1)) for pair in settings.rename]
        self._add = [tuple(pair.split("=", 1)) for pair in settings.add]

    def apply(self, records: list[Record]) -> list[Record]:
        """All of them, changed in place."""
        for _, _, document in records:
            assert type(document) is dict
            for name in self._remove:
                remove(document, name)
            for old, new in self._rename:
                if (value := value_of(document, old)) is not None:
                    remove(document, old)
                    remove(document, new)
                    document[new] = value
            for name, value in self._add:
                remove(document, name)
                document[name] = value
        return records


class Cut:
    """Cuts long texts at a character's end, and says in `labels.cut` where."""

    needs_fields = True

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes

    def apply(self, records: list[Record]) -> list[Record]:
        """All of them, changed in place."""
        for _, raw, document in records:
            # No text is longer than its line but by what is escaped or replaced in it, or added to it by settings.
            if len(raw) * 3 > self._most:
                assert type(document) is dict
                names: list[str] = []
                self._object(document, "", names)
                if names:
                    CUT_FIELDS.inc(len(names))
                    document["labels.cut"] = ", ".join(names[:20])
        return records

    def _object(self, fields: Fields, path: str, names: list[str]) -> None:
        for key, value in fields.items():
            if key != "@timestamp":
                fields[key] = self._value(value, path + str(key), names)

    def _value(self, value: Any, path: str, names: list[str]) -> Any:
        kind = type(value)
        if kind is str:
            if len(value) * 4 > self._most and len(text := value.encode("utf-8", "replace")) > self._most:
                names.append(path[:100])
                return text[: self._most].decode("utf-8", "ignore")
        elif kind is dict:
            self._object(value, path + ".", names)
        elif kind is list:
            return [self._value(item, path, names) for item in value]
        return value
