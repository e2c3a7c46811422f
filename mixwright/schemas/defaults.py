"""Names of the models that ship with mixwright's dependencies, and so work offline."""

DEFAULT_TOKENIZER = "all-minilm-l6-v2"
DEFAULT_ENCODER = "all-minilm-l6-v2"
