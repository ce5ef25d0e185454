"""What dsobs itself writes of alerts, actions and incidents: JSON lines with a data stream of their own."""

from dsobs.logs.formats.json_lines import JsonBody, JsonParser
from dsobs.logs.record import Common, LogFile


class Incidents:
    """`incidents.ndjson` of the state directory."""

    def open(self, file: LogFile, common: Common, *, as_fields: bool) -> JsonParser:
        """A parser."""
        return JsonParser(JsonBody("incident", file, common, as_fields=as_fields))
