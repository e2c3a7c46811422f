"""From a pool of corpora to a training mixture."""
