#!/usr/bin/env python3
"""Train tiny-r1, a 1.2 M parameter reasoner in the architecture of DeepSeek-R1 that answers tiny-qwq's questions; run
with torch 2.13.0 (CPU build) and transformers 5.19.0.

    python recipe.py OUT [--evaluate] [--from FOLDER] [--steps N] [--seed S] [--lr LR] [--batch-size B]

One dense layer and one with experts; latent attention with compressed queries, keys and values; sigmoid routing over
groups of experts, steered by a bias that is learned without a loss; a shared expert; YaRN. The task, its held-out pairs,
the tokenizer and the training loop are those of tiny-qwq's recipe, which is read from the folder beside this one. The
defaults give the files that lie beside this script: every random number has a fixed seed and torch runs on one thread,
so a second run on the same kind of processor repeats model.safetensors byte for byte. On another processor the weights,
and with them the score, may differ.

The training is in float32. Its result is then stored as DeepSeek-R1 is: projections in FP8 with a float32 scale for each
block of 128 x 128, which multiplies although it is named weight_scale_inv, the router's bias in float32, all else in
bfloat16. --from takes trained float32 weights from a folder and does this step alone; it is the same on any processor.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
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
BLOCK = 128
LARGEST = 448.0  # of the numbers of e4m3
SCALE = "_scale_inv"
QUANTISATION = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}


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


def complete_config(out: Path, dtype: str, **changes: Any) -> None:
    """Write config.json as DeepSeek-R1's is: with what transformers leaves out, and with the dtype under its older name."""
    path = out / "config.json"
    config = json.loads(path.read_text())
    for key in ("dtype", "quantization_config"):
        config.pop(key, None)
    config |= ROUTING | {"torch_dtype": dtype} | changes
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def as_blocks(weight: torch.Tensor) -> torch.Tensor:
    """Return a matrix as [blocks down, rows, blocks across, columns] of whole blocks, with zeros where it ends before they do."""
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % BLOCK, 0, -rows % BLOCK))
    return padded.view(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)


def quantise_block(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return e4m3 numbers and the scales that they are to be multiplied with: of each block, its largest magnitude / 448."""
    blocks = as_blocks(weight)
    scales = blocks.abs().amax(dim=(1, 3)) / LARGEST
    scales[scales == 0] = 1
    codes = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
    codes = codes.view(blocks.shape[0] * BLOCK, -1)[: weight.shape[0], : weight.shape[1]]
    return codes.contiguous(), scales


def quantise(out: Path) -> None:
    """Store the float32 checkpoint in a folder as DeepSeek-R1 is stored."""
    weights: dict[str, torch.Tensor] = {}
    for name, weight in load_file(out / "model.safetensors").items():
        assert weight.dtype == torch.float32, f"{name} is not float32"
        if name.endswith(("_proj.weight", "_proj_with_mqa.weight")):
            weights[name], weights[name + SCALE] = quantise_block(weight)
        else:
            weights[name] = weight if name.endswith(".e_score_correction_bias") else weight.to(torch.bfloat16)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    complete_config(out, "bfloat16", quantization_config=QUANTISATION)


def dequantise(out: Path, dtype: torch.dtype, target: Path) -> None:
    """Write the checkpoint in a folder in a plain type: the product in float32, rounded once."""
    weights = load_file(out / "model.safetensors")
    for name in [name for name in weights if name.endswith(SCALE)]:
        scales, codes = weights.pop(name), weights[name.removesuffix(SCALE)].float()
        blocks = as_blocks(codes) * scales[:, None, :, None]
        weights[name.removesuffix(SCALE)] = blocks.view(blocks.shape[0] * BLOCK, -1)[: codes.shape[0], : codes.shape[1]]
    kept = {name: weight if name.endswith("_bias") else weight.to(dtype).contiguous() for name, weight in weights.items()}
    shutil.copytree(out, target, ignore=shutil.ignore_patterns("model.safetensors", "*.py"), dirs_exist_ok=True)
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    complete_config(target, str(dtype).removeprefix("torch."))


def grade(out: Path, dtype: torch.dtype, questions: list[dict[str, str]]) -> list[bool]:
    """Answer every question greedily with the checkpoint in a plain type; batches of equal length need no padding."""
    with tempfile.TemporaryDirectory() as folder:
        dequantise(out, dtype, Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
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


def train(args: argparse.Namespace, held_out: list[tuple[int, int]], training: list[tuple[int, int]]) -> None:
    """Train and save the float32 checkpoint."""
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


def main() -> None:
    """Train, save in FP8, and where asked grade the result in float32 and bfloat16."""
    parser = argparse.ArgumentParser(description="Train the tiny-r1 checkpoint.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the checkpoint")
    parser.add_argument("--evaluate", action="store_true", help="grade the saved checkpoint on the held-out questions")
    parser.add_argument("--from", dest="trained", type=Path, metavar="FOLDER", help="a trained float32 checkpoint: do not train")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    held_out, training = addition.split_pairs()
    if args.trained:
        shutil.copytree(args.trained, args.out, ignore=shutil.ignore_patterns("*.py"), dirs_exist_ok=True)
    else:
        train(args, held_out, training)
    quantise(args.out)
    if args.evaluate:
        questions = addition.make_questions(held_out)
        full, half = (grade(args.out, dtype, questions) for dtype in (torch.float32, torch.bfloat16))
        print(f"exact match: float32 {sum(full) / len(full):.3f}, bfloat16 {sum(half) / len(half):.3f}")
        pairs = Counter(zip(full, half, strict=True))
        print(f"right only in float32: {pairs[True, False]}, right only in bfloat16: {pairs[False, True]}")


if __name__ == "__main__":
    main()
