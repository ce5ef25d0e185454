"""OpenTelemetry: what dsobs knows, in the data model of opentelemetry-sdk, sent as OTLP over HTTP (extra `otlp`).

https://opentelemetry.io/docs/specs/otlp/#otlphttp. An export path, not the durable one: of metrics only the newest
state counts, traces wait in a bounded queue, and nothing here is waited for by alerting or repair.
"""
