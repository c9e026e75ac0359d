"""Every Prometheus metric of the service (DESIGN section 10). Base units; labels are bounded, never a slide's id."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)

REQUESTS = Counter("wsisam_requests_total", "Requests answered.", ("route", "status"))
REQUEST_SECONDS = Histogram(
    "wsisam_request_seconds", "From the request's head to the answer's last byte.", ("route",), buckets=_SECONDS
)
REFUSALS = Counter("wsisam_refusals_total", "Requests answered with a problem, by problem type.", ("problem",))

EMBEDDING_LOOKUPS = Counter(
    "wsisam_embedding_lookups_total",
    "Views needed, by where their embedding was found (l1, memory, folder, redis, encoded) and role (hr, lr).",
    ("tier", "role"),
)
ENCODE_SECONDS = Histogram("wsisam_encode_seconds", "One encoder call, a batch of views.", buckets=_SECONDS)
DECODE_SECONDS = Histogram("wsisam_decode_seconds", "One decoder call, a batch of prompts.", buckets=_SECONDS)
READ_SECONDS = Histogram("wsisam_read_seconds", "Reading and resampling the pixels of one view.", buckets=_SECONDS)

BATCH_SIZE = Histogram(
    "wsisam_batch_size", "Items in one device call (encode, load, decode).", ("kind",), buckets=_BATCH
)
QUEUE_DEPTH = Gauge("wsisam_queue_depth", "Items waiting for the device (encode, load, decode).", ("kind",))
INFLIGHT = Gauge("wsisam_inflight", "Work admitted and not yet answered (encode, decode, request).", ("kind",))

AUDIT_EVENTS = Counter(
    "wsisam_audit_events_total", "Audit events, by sink (file, syslog) and fate (delivered, lost).", ("sink", "fate")
)
AUDIT_WAITING = Gauge("wsisam_audit_waiting", "Audit events that a sink has not taken yet.", ("sink",))
AUDIT_FAILING = Gauge("wsisam_audit_failing", "1 while an audit sink takes no events.", ("sink",))

PACS_SECONDS = Histogram(
    "wsisam_pacs_seconds", "Questions to a PACS (search, metadata, frames, store).", ("question",), buckets=_SECONDS
)
PACS_ERRORS = Counter("wsisam_pacs_errors_total", "Questions that a PACS left unanswered.", ("question",))

CACHE_BYTES = Gauge("wsisam_cache_bytes", "Bytes held by a cache (l1, memory, folder, redis, tiles, iiif).", ("tier",))
DEVICE_MEMORY = Gauge("wsisam_device_memory_bytes", "Memory of the GPU (used by all processes, total).", ("state",))
STORE_ERRORS = Counter("wsisam_store_errors_total", "Calls of an embedding store that failed or took too long.")
