#!/usr/bin/env python3
"""Train tiny-qwq, a 0.43 M parameter "reasoner" that adds two numbers digit by digit inside a <think> block and then
answers, so that an evaluation has a real model with a real, below-ceiling score; run with torch 2.13.0 (CPU build) and
transformers 5.19.0.

    python recipe.py OUT [--questions FILE] [--evaluate] [--steps N] [--seed S] [--lr LR] [--batch-size B]

The defaults give the files that lie beside this script. Everything random is drawn from fixed seeds and torch runs on
one thread, so a second run on the same kind of processor repeats model.safetensors byte for byte. Another processor
may choose other arithmetic kernels; training stops early on purpose, below the ceiling, and what it has learned by then
depends on the last digits, so the weights and the score would both differ.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

Pair = tuple[int, int]

PHRASINGS = ("What is {x}+{y}?", "Compute {x}+{y}.", "{x}+{y}=?")
HELD_OUT = 1000
SPLIT_SEED = 20240607  # apart from --seed: another training seed must never move a held-out pair into training
MAX_POSITIONS = 2048
MAX_NEW_TOKENS = 64
IGNORE = -100  # cross_entropy skips these targets
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# transformers gives every "qwen2" checkpoint Qwen2's own pre-tokenizer when it loads one, whatever tokenizer.json says.
# The merges must therefore be learned under exactly that rule.
QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def split_pairs() -> tuple[list[Pair], list[Pair]]:
    """Return (held-out pairs, training pairs): a fixed shuffle of all 10,000 pairs of numbers from 0 to 99."""
    pairs = [(x, y) for x in range(100) for y in range(100)]
    random.Random(SPLIT_SEED).shuffle(pairs)
    return pairs[:HELD_OUT], pairs[HELD_OUT:]


def make_questions(pairs: Iterable[Pair]) -> list[dict[str, str]]:
    """Return one question per pair; the phrasings take turns."""
    return [
        {"id": f"add-{i:04d}", "prompt": PHRASINGS[i % len(PHRASINGS)].format(x=x, y=y), "answer": str(x + y)}
        for i, (x, y) in enumerate(pairs)
    ]


def reply_text(x: int, y: int) -> str:
    """Return the assistant's turn: one line per digit (digits, carry, sum, result so far), then the answer.

    The result so far is what makes the task learnable: without it the answer has to be gathered from several lines,
    and a model of this size does not manage that.
    """
    lines, done, carry, left, right = [], "", 0, x, y
    while True:
        a, b = left % 10, right % 10
        total = a + b + carry
        left, right = left // 10, right // 10
        final = not (left or right)
        done = (str(total) if final else str(total % 10)) + done
        lines.append(f"{a}+{b}+{carry}={total} {done}")
        carry = total // 10
        if final:
            break
    return "<think>\n" + "\n".join(lines) + f"\n</think>\n\n{x + y}"


def build_tokenizer(pairs: list[Pair]) -> Qwen2Tokenizer:
    """Learn a small byte-level vocabulary under Qwen2's rules and wrap it in Qwen2's tokenizer class."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), byte_level])
    bpe.decoder = decoders.ByteLevel()
    corpus = [question["prompt"] for question in make_questions(pairs[:600])] + ["system", "user", "assistant"] * 50
    trainer = trainers.BpeTrainer(
        vocab_size=318,  # with the two think tags: 320 at most
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    learned = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        unk_token=None,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[TURN_START],
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    # Not special: decoding drops special tokens, and a reader of the answer needs to see where the thinking ends.
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """Return the untrained model; its weights come from torch's global seed."""
    stop, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = Qwen2Config(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=stop,
        pad_token_id=pad,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=[stop, pad], pad_token_id=pad)
    return model


def encode_prompt(tokenizer: Qwen2Tokenizer, question: str) -> list[int]:
    """Return the token ids of a chat that waits for the assistant's turn."""
    chat = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def encode_examples(tokenizer: Qwen2Tokenizer, pairs: list[Pair], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return padded inputs and targets; only the assistant's turn is a target."""
    rng = random.Random(seed)
    rows = []
    for x, y in pairs:
        prompt = encode_prompt(tokenizer, rng.choice(PHRASINGS).format(x=x, y=y))
        reply = tokenizer(reply_text(x, y) + TURN_END, add_special_tokens=False)["input_ids"]
        rows.append((prompt + reply, [IGNORE] * len(prompt) + reply))
    width = max(len(ids) for ids, _ in rows)
    inputs = torch.full((len(rows), width), tokenizer.pad_token_id)
    targets = torch.full((len(rows), width), IGNORE)
    for i, (ids, wanted) in enumerate(rows):
        inputs[i, : len(ids)] = torch.tensor(ids)
        targets[i, : len(wanted)] = torch.tensor(wanted)
    return inputs, targets


def train(model: Qwen2ForCausalLM, inputs: torch.Tensor, targets: torch.Tensor, args: argparse.Namespace) -> None:
    """Train in float32: AdamW, a short warm-up, then a cosine down to 2 % of the learning rate."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))

    def scale(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / args.steps)))
        return min(1.0, (step + 1) / 50) * (0.02 + 0.98 * cosine)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    draw = torch.Generator().manual_seed(args.seed)
    model.train()
    for step in range(args.steps):
        rows = torch.randint(len(inputs), (args.batch_size,), generator=draw)
        logits = model(input_ids=inputs[rows]).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, targets[rows][:, 1:].flatten(), ignore_index=IGNORE)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step + 1 == args.steps:
            print(f"step {step} loss {loss.item():.4f}", flush=True)


def save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, out: Path) -> None:
    """Write the checkpoint, readable for every user, and check that its tokenizer reloads as the one trained with."""
    out.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    for path in (*out.glob("*.json"), out / "model.safetensors", out / "chat_template.jinja"):
        path.chmod(0o644)  # safetensors makes its file private to its owner
    reloaded, bare = AutoTokenizer.from_pretrained(out), Tokenizer.from_file(str(out / "tokenizer.json"))
    assert reloaded.chat_template == tokenizer.chat_template
    for phrasing in PHRASINGS:
        text = f"{TURN_START}user\n{phrasing.format(x=37, y=45)}{TURN_END}\n{reply_text(37, 45)}{TURN_END}"
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert reloaded(text, add_special_tokens=False)["input_ids"] == expected, "the reloaded tokenizer differs"
        assert bare.encode(text, add_special_tokens=False).ids == expected, "tokenizer.json alone differs"


def grade(out: Path, dtype: torch.dtype, questions: list[dict[str, str]]) -> list[bool]:
    """Answer every question greedily with the saved checkpoint; batches of equal length need no padding."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = Qwen2ForCausalLM.from_pretrained(out, dtype=dtype).eval()
    by_length: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for i, question in enumerate(questions):
        ids = encode_prompt(tokenizer, question["prompt"])
        by_length[len(ids)].append((i, ids))
    right = [False] * len(questions)
    for length, batch in by_length.items():
        prompts = torch.tensor([ids for _, ids in batch])
        mask = torch.ones_like(prompts)
        output = model.generate(prompts, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        replies = tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        for (i, _), reply in zip(batch, replies, strict=True):
            right[i] = reply.split("</think>")[-1].strip() == questions[i]["answer"]
    return right


def main() -> None:
    """Train, save, and where asked write the questions and grade the result in float32 and bfloat16."""
    parser = argparse.ArgumentParser(description="Train the tiny-qwq checkpoint.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the checkpoint")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="also write the held-out questions (JSONL)")
    parser.add_argument("--evaluate", action="store_true", help="grade the saved checkpoint on the held-out questions")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    held_out, training = split_pairs()
    assert len(held_out) == HELD_OUT and not set(held_out) & set(training)
    questions = make_questions(held_out)
    if args.questions:
        args.questions.parent.mkdir(parents=True, exist_ok=True)
        args.questions.write_text("".join(json.dumps(q, separators=(",", ":")) + "\n" for q in questions))
        args.questions.chmod(0o644)
    tokenizer = build_tokenizer(training)
    model = build_model(tokenizer)
    inputs, targets = encode_examples(tokenizer, training, args.seed)
    start = time.monotonic()
    train(model, inputs, targets, args)
    print(f"trained {model.num_parameters()} parameters in {time.monotonic() - start:.0f} s")
    save(model, tokenizer, args.out)
    if args.evaluate:
        full, half = (grade(args.out, dtype, questions) for dtype in (torch.float32, torch.bfloat16))
        print(f"exact match: float32 {sum(full) / HELD_OUT:.3f}, bfloat16 {sum(half) / HELD_OUT:.3f}")
        pairs = Counter(zip(full, half, strict=True))
        print(f"right only in float32: {pairs[True, False]}, right only in bfloat16: {pairs[False, True]}")


if __name__ == "__main__":
    main()
