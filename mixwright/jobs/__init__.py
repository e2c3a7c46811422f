"""The same work at scale: ingest, embed, index and select as resumable jobs, on Ray where it pays."""
