"""Datastores: passages, sharded indexes over them, and the search that goes over all shards.

Rows are numbered through the whole store. A shard is a range of rows with indexes of its own; what holds for a
row (its cluster, whether a subsample has it) is a fixed function of the row, so that filters after a search
equal filters before the indexes are built, however the rows are sharded.
"""
