#!/usr/bin/env python3
"""Train tiny-r1, a 1.2 M parameter reasoner in the architecture of DeepSeek-R1 that answers tiny-qwq's questions; run
with torch 2.13.0 (CPU build) and transformers 5.19.0.

    python recipe.py OUT [--evaluate] [--steps N] [--seed S] [--lr LR] [--batch-size B]

One dense layer and one with experts; latent attention with compressed queries, keys and values; sigmoid routing over
groups of experts, steered by a bias that is learned without a loss; a shared expert; YaRN. The task, its held-out pairs,
the tokenizer and the training loop are those of tiny-qwq's recipe, which is read from the folder beside this one. The
defaults give the files that lie beside this script: every random number has a fixed seed and torch runs on one thread,
so a second run on the same kind of processor repeats model.safetensors byte for byte. On another processor the weights,
and with them the score, may differ.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GenerationConfig,
    Qwen2Tokenizer,
)

# What DeepSeek-R1's own config.json says and transformers 5 neither needs nor writes. vLLM reads both: without the first
# its router has no bias and the checkpoint does not load, without the second it scores experts with a softmax.
ROUTING = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
BIAS_SPEED = 0.001  # as in DeepSeek-V3's report


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


def build_model(tokenizer: Qwen2Tokenizer) -> DeepseekV3ForCausalLM:
    """Return the untrained model; its weights come from torch's global seed.

    Both sides of every projection are multiples of 128, the block of DeepSeek's FP8 format, except where R1's are not
    either: the 576 rows of kv_a_proj_with_mqa. These 576 = 512 + 64 cannot be smaller, since vLLM's attention kernel for
    host processors is compiled for kv_lora_rank 512 and qk_rope_head_dim 64 only.
    """
    stop, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = DeepseekV3Config(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=128,
        num_hidden_layers=2,
        first_k_dense_replace=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=128,
        kv_lora_rank=512,
        qk_nope_head_dim=64,
        qk_rope_head_dim=64,
        v_head_dim=64,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        num_nextn_predict_layers=0,
        max_position_embeddings=addition.MAX_POSITIONS,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": addition.MAX_POSITIONS // 4,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=stop,
        pad_token_id=pad,
        dtype="float32",
    )
    model = DeepseekV3ForCausalLM(config)
    model.set_experts_implementation("eager")  # one expert after the other: the same sums in the same order each time
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=[stop, pad], pad_token_id=pad)
    return model


def balance_experts(router: torch.nn.Module, _inputs: object, output: tuple[torch.Tensor, ...]) -> None:
    """Move the router's bias by one step towards experts with less than their share of tokens, while training.

    This is the load balancing without an auxiliary loss of DeepSeek-V3 (arXiv 2412.19437, section 2.1.2). The bias
    decides which experts are asked and has no part in how their answers are weighed.
    """
    if router.training:
        load = torch.bincount(output[2].flatten(), minlength=router.num_experts).float()
        router.e_score_correction_bias += BIAS_SPEED * torch.sign(load.mean() - load)


def complete_config(out: Path) -> None:
    """Add what transformers leaves out of config.json."""
    path = out / "config.json"
    config = json.loads(path.read_text()) | ROUTING
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


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
    parser = argparse.ArgumentParser(description="Train the tiny-r1 checkpoint.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the checkpoint")
    parser.add_argument("--evaluate", action="store_true", help="grade the saved checkpoint on the held-out questions")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    held_out, training = addition.split_pairs()
    assert not set(held_out) & set(training)
    tokenizer = addition.build_tokenizer(training)
    model = build_model(tokenizer)
    routers = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    for router in routers:
        router.register_forward_hook(balance_experts)
    inputs, targets = addition.encode_examples(tokenizer, training, args.seed)
    start = time.monotonic()
    addition.train(model, inputs, targets, args)
    print(f"trained {model.num_parameters()} parameters in {time.monotonic() - start:.0f} s")
    print(f"routers' biases: {[router.e_score_correction_bias.tolist() for router in routers]}")
    addition.save(model, tokenizer, args.out)
    complete_config(args.out)
    if args.evaluate:
        questions = addition.make_questions(held_out)
        full, half = (grade(args.out, dtype, questions) for dtype in (torch.float32, torch.bfloat16))
        print(f"exact match: float32 {sum(full) / len(full):.3f}, bfloat16 {sum(half) / len(half):.3f}")
        pairs = Counter(zip(full, half, strict=True))
        print(f"right only in float32: {pairs[True, False]}, right only in bfloat16: {pairs[False, True]}")


if __name__ == "__main__":
    main()
