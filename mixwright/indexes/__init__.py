"""Encoders, FAISS indexes and datastores: nearest neighbours at every size."""
