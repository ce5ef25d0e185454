"""What is asked of logs in Lucene's query language: the same in Grafana and in Kibana."""

TIME = "@timestamp"
BAD = "log.level:(ERROR OR CRITICAL OR FATAL OR error OR critical OR fatal)"
"""ERROR and above, in the words of engines and of others."""
INCIDENTS = "event.dataset:dsobs.incident"
"""dsobs's own alerts, actions and incidents."""
