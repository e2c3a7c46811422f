"""Jobs that build and change datastores: pieces (passages and vectors), then indexes over shards of them."""
