"""Parts of the pruning-and-recovery experiment ``paser_recovery.py``."""
