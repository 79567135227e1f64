"""What Prometheus can ask about the api."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

REQUESTS = Histogram("icg_api_request_seconds", "Time to answer.", ["route", "method", "status"], buckets=_BUCKETS)
SERVED = Counter("icg_api_served", "Covers answered, by whose cover it was and why.", ["served", "fallback"])
FEAST_SECONDS = Histogram("icg_api_feast_seconds", "Time of one Feast read.", ["what"], buckets=_BUCKETS)
FEAST_FAULTS = Counter("icg_api_feast_faults", "Feast reads that failed or took too long.")
MANIFEST_READS = Counter("icg_api_manifest_reads", "Manifests read from S3 because Feast had no row.")
BLOCKED = Gauge("icg_api_blocked_covers", "Covers that are switched off.")
PERSONALIZATION = Gauge("icg_api_personalization", "1 when covers are personal, 0 when the switch is off.")
SWITCHES_AGE = Gauge("icg_api_switches_age_seconds", "Since the switches were last read.")
