"""The same work at scale: ingest, embed, index, score and select as resumable jobs, on Ray where it pays."""
