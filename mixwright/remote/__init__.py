"""Artifacts in a bucket: where they lie, how they are listed and published, and the copies that are read here."""
