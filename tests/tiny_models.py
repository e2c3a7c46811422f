"""Real causal language models of a few thousand weights, with a tokenizer, made in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<|turn|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
SENTENCES = [
    "What is the capital of France? The capital of France is Paris.",
    "Add two and two. The answer is four, because two and two are four.",
    "Translate the word river. Write a short letter about a stone, a lamp and a long winter.",
    "A market opens at seven and closes when the green engine walks home in the evening.",
]


def save_tokenizer(
    folder: Path, *, chat: bool = False, vocab_size: int = 400, lowercase: bool = False, begin: bool = False
) -> Any:
    """A byte-level BPE tokenizer; with ``begin`` every text begins with <s>."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<|turn|>", "<|end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|turn|>", "<|end|>"],
    )
    wrapped.chat_template = CHAT_TEMPLATE if chat else None
    wrapped.save_pretrained(folder)
    return wrapped


def make_model(kind: str = "llama", vocab_size: int = 400, seed: int = 0, **options: Any) -> Any:
    """A model with random weights, large enough that its distributions have peaks; in float32."""
    import torch
    import transformers

    shared = {"vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    spread = {"initializer_range": 0.3, "max_position_embeddings": 256}
    config: Any
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3, **shared, **options
        )
    elif kind == "gemma2":
        config = transformers.Gemma2Config(
            head_dim=8, num_key_value_heads=2, final_logit_softcapping=2.0, **shared, **small, **spread, **options
        )
    elif kind == "granite":
        config = transformers.GraniteConfig(
            num_key_value_heads=2, logits_scaling=3.0, **shared, **small, **spread, **options
        )
    else:
        config = transformers.LlamaConfig(num_key_value_heads=2, **shared, **small, **spread, **options)
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config).float().eval()


def pruned_by_magnitude(model: Any, sparsity: float) -> Any:
    """A copy of the model without the smallest weights of each matrix of its layers."""
    import copy

    import torch

    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in copied.named_parameters():
            n = int(weight.numel() * sparsity)
            if weight.dim() == 2 and n and (".layers." in name or ".h." in name):
                weight[weight.abs() <= weight.abs().flatten().kthvalue(n).values] = 0
    return copied


def save_model(folder: Path, model: Any, **tokenizer: Any) -> Path:
    """A model folder, with its tokenizer."""
    model.save_pretrained(folder)
    save_tokenizer(folder, **tokenizer)
    return folder
