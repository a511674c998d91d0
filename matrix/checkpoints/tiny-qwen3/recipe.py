#!/usr/bin/env python3
"""Train tiny-qwen3, a 0.53 M parameter reasoner in the architecture of Qwen3-32B (normalised queries and keys, no bias,
heads wider than hidden / heads, grouped key-value heads) that answers tiny-qwq's questions; run with torch 2.13.0 (CPU
build) and transformers 5.19.0.

    python recipe.py OUT [--evaluate] [--steps N] [--seed S] [--lr LR] [--batch-size B]

The task, its held-out pairs, the tokenizer and the training loop are those of tiny-qwq's recipe, which is read from the
folder beside this one; only the architecture is this file's own. The defaults give the files that lie beside this
script: every random number has a fixed seed and torch runs on one thread, so a second run on the same kind of processor
repeats model.safetensors byte for byte. On another processor the weights, and with them the score, may differ.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM


def load_recipe(model: str) -> Any:
    """Return the recipe of another of our checkpoints as a module."""
    path = Path(__file__).resolve().parents[1] / model / "recipe.py"
    spec = importlib.util.spec_from_file_location(model.replace("-", "_"), path)
    assert spec and spec.loader
    sys.dont_write_bytecode = True  # the folders hold the checkpoints' pinned files and nothing else
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


addition = load_recipe("tiny-qwq")


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen3ForCausalLM:
    """Return the untrained model; its weights come from torch's global seed."""
    stop, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = Qwen3Config(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,  # twice hidden / heads, as in Qwen3-32B (128 where 5120 / 64 would be 80)
        max_position_embeddings=addition.MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=stop,
        pad_token_id=pad,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=[stop, pad], pad_token_id=pad)
    return model


def grade(out: Path, dtype: torch.dtype, questions: list[dict[str, str]]) -> list[bool]:
    """Answer every question greedily with the saved checkpoint; batches of equal length need no padding."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=dtype).eval()
    by_length: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for i, question in enumerate(questions):
        ids = addition.encode_prompt(tokenizer, question["prompt"])
        by_length[len(ids)].append((i, ids))
    right = [False] * len(questions)
    for length, batch in by_length.items():
        prompts = torch.tensor([ids for _, ids in batch])
        mask = torch.ones_like(prompts)
        output = model.generate(prompts, attention_mask=mask, max_new_tokens=addition.MAX_NEW_TOKENS, do_sample=False)
        replies = tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        for (i, _), reply in zip(batch, replies, strict=True):
            right[i] = reply.split("</think>")[-1].strip() == questions[i]["answer"]
    return right


def main() -> None:
    """Train, save, and where asked grade the result in float32 and bfloat16."""
    parser = argparse.ArgumentParser(description="Train the tiny-qwen3 checkpoint.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the checkpoint")
    parser.add_argument("--evaluate", action="store_true", help="grade the saved checkpoint on the held-out questions")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    held_out, training = addition.split_pairs()
    assert not set(held_out) & set(training)
    tokenizer = addition.build_tokenizer(training)
    model = build_model(tokenizer)
    inputs, targets = addition.encode_examples(tokenizer, training, args.seed)
    start = time.monotonic()
    addition.train(model, inputs, targets, args)
    print(f"trained {model.num_parameters()} parameters in {time.monotonic() - start:.0f} s")
    addition.save(model, tokenizer, args.out)
    if args.evaluate:
        questions = addition.make_questions(held_out)
        full, half = (grade(args.out, dtype, questions) for dtype in (torch.float32, torch.bfloat16))
        print(f"exact match: float32 {sum(full) / len(full):.3f}, bfloat16 {sum(half) / len(half):.3f}")
        pairs = Counter(zip(full, half, strict=True))
        print(f"right only in float32: {pairs[True, False]}, right only in bfloat16: {pairs[False, True]}")


if __name__ == "__main__":
    main()
