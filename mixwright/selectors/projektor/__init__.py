"""projektor: what a mixture will score, and which mixture to choose (Kang et al., arXiv 2307.02460)."""
