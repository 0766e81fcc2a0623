"""Small models with random weights, noise as clips, and what the stock model makes of them."""

from dataclasses import replace

import numpy as np
import soundfile
import torch

from evaluators.audio_lm.answer_tokens import find_answers
from evaluators.audio_lm.batch_sizes import BatchSizes
from evaluators.audio_lm.checkpoint import open_checkpoint
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.audio_lm.templates import encode


def random_model(seconds):
    """(model, processor) of the architecture with random weights, grouped queries and a window of so many seconds."""
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = AudioScorer(open_checkpoint("pocket-base"), "cpu").processor.tokenizer
    config = Qwen2AudioConfig(
        audio_config={"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2,
                      "encoder_ffn_dim": 64, "num_mel_bins": 80, "max_source_positions": 50 * seconds},
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer) + 8, "hidden_size": 64,
                     "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
                     "num_key_value_heads": 2},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(config).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(3)  # so that answers differ
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=seconds)
    return model, Qwen2AudioProcessor(extractor, tokenizer)


def evaluator_with(model, processor, shape=None, dtype="float32", **options):
    checkpoint = open_checkpoint("pocket-base")
    loaded = (model, processor)
    return AudioScorer(checkpoint, "cpu", dtype, shape=shape, loaded=loaded, **options)


def whole_batches(scorer):
    """The scorer, with batches of one size each: what is not full is padded to it."""
    scorer.decoder.sizes = lambda own, most: BatchSizes((own,))
    return scorer


def stock_scores(stock, prompt, clip):
    """By the stock forward ``[member, label]``: (sum, largest) over a label's sequences, each read in one call."""
    inputs = stock.inputs(prompt, clip)
    rows = []
    for group in find_answers(stock.processor.tokenizer, prompt).sequences:
        parts = []
        for sequence in group:
            ids = torch.cat([inputs["input_ids"], torch.tensor([sequence[:-1]]).long()], 1)
            with torch.inference_mode():
                given = inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                logp = stock.model(**given).logits[0].log_softmax(-1)
            last = len(logp) - len(sequence)
            parts.append(sum(float(logp[last + i, t]) for i, t in enumerate(sequence)))
        rows.append((np.logaddexp.reduce(parts), max(parts)))
    return np.array(rows).T


def noise(folder, clip, number, samples):
    """A clip of so many samples, of its own."""
    path = folder / f"{number}.wav"
    wave = np.random.default_rng(number).normal(0, 0.02 * (1 + number % 7), samples)
    soundfile.write(path, wave.astype(np.float32), 16000, subtype="FLOAT")
    return replace(clip, path=path, sha256=f"noise {number}", clip_id=f"noise {number}")


def whole_sequence(scorer, prompt, vectors, audio):
    """``[clip, label]`` nats of a soft prompt by the stock layers over the whole sequence, of equally long clips.

    Answers are single tokens; `audio` holds the clips' embeddings.
    """
    model, row = scorer.decoder.model, scorer.row(prompt)
    template, tokenizer = scorer.family.template, scorer.processor.tokenizer
    before = torch.tensor(encode(tokenizer, template.before(prompt.system)), device=scorer.device)
    places = torch.from_numpy(scorer.places(prompt)).to(scorer.device)
    suffix = scorer.embed(row.ids).detach().index_put((places,), vectors.to(scorer.dtype))
    first = model.model.language_model.embed_tokens(before)
    x = torch.stack([torch.cat([first, e, suffix]) for e in audio])  # clips are equally long
    hidden = model.model.language_model(inputs_embeds=x, use_cache=False).last_hidden_state[:, -1:]
    nats = model.lm_head(hidden).float().log_softmax(-1)[:, 0]
    reads = [
        [int(token) for _, token, s in row.reads if row.labels[s] == k]
        for k in range(max(row.labels) + 1)
    ]
    return torch.stack([nats[:, own].logsumexp(1) for own in reads], 1)
