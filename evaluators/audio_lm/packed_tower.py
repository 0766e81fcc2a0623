"""Audio towers on clips of any lengths at once: their positions one after another in a line of a fixed size.

What a position is computed from and in which shape depends on its own clip alone, so an embedding does not depend on
the other clips in the line, and clips of any lengths cost what they weigh.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from evaluators.audio_lm.attention import Heads, RowAttention
from evaluators.audio_lm.decoder import LONG_BLOCK, load_kernels
from evaluators.audio_lm.packing import Ints, to_device

OMNI_CHUNKS = 32  # chunks of a clip that go through the convolutions at once: always so many


class LogMel(NamedTuple):
    """A clip's features ``[mel bin, frame]``, and how many of the 10 ms frames are the clip's."""

    values: NDArray[np.float32]
    frames: int


def qwen2_audio_positions(frames: int) -> int:
    """Positions after the two convolutions; each two of them become a token."""
    return (frames - 1) // 2 + 1


def whisper_positions(config: Any, frames: int) -> int:
    """Positions of a clip of any number of windows."""
    width = window_frames(config)
    return frames // width * (width // 2) + qwen2_audio_positions(frames % width)


def voxtral_positions(config: Any, frames: int) -> int:
    """Positions of all windows that a clip begins: the padding of the last one is heard, too."""
    width = window_frames(config)
    return -(-frames // width) * width // 2


def omni_tokens(config: Any, frames: int) -> int:
    """Audio tokens: three convolutions of stride 2 over windows of ``2 * n_window`` frames, each window alone."""
    window = 2 * config.audio_config.n_window
    whole, rest = divmod(frames, window)
    return whole * _eighth(window) + _eighth(rest)


def _eighth(frames: int) -> int:
    for _ in range(3):
        frames = (frames + 1) // 2
    return frames


def window_frames(config: Any) -> int:
    """10 ms frames of an audio tower's window: its first convolution keeps their number, its second halves it."""
    return 2 * int(config.audio_config.max_source_positions)


def cut(clip: LogMel, width: int) -> list[LogMel]:
    """A clip's features in parts of `width` frames; the last may have fewer, and has what comes after the clip."""
    last = max(0, clip.frames - 1) // width
    whole = [LogMel(clip.values[:, i * width : (i + 1) * width], width) for i in range(last)]
    return [*whole, LogMel(clip.values[:, last * width :], clip.frames - last * width)]


def filled(clip: LogMel, width: int) -> NDArray[np.float32]:
    """``[bin, frame]``: a clip's features up to the end of its last window of `width` frames.

    Past the frames that its features hold nothing is heard, so that all of them are like the last one.
    """
    missing = -(-clip.frames // width) * width - clip.values.shape[1]
    return np.pad(clip.values, ((0, 0), (0, max(0, missing))), mode="edge")


def embed_qwen2_audio(model: Any, clips: Sequence[LogMel], size: int) -> list[Tensor]:
    """Audio embeddings ``[token, channel]`` of each clip, exact.

    The stock model pads to its whole window (30 s) and masks the padding as keys in every layer, so valid positions
    never attend to it. The convolutions are products of the frames that each of their outputs sees, so that those at a
    clip's ends see what they see there in the stock model, and not the next clip in the line.

    Audio Flamingo 3 has the same tower; of longer clips it hears one window after another, each alone.

    Args:
        model: A Qwen2AudioForConditionalGeneration, or an AudioFlamingo3ForConditionalGeneration.
        clips: Features, with two frames or more after the clip's own, or as many as the window has.
        size: Positions of the line, an even number; enough for the clips.
    """
    tower = model.model.audio_tower
    parts = [cut(clip, window_frames(model.config)) for clip in clips]
    x = _whisper_layers(tower, [part for own in parts for part in own], size)
    x, tokens = _pooled(x, parts)
    return _split(model.model.multi_modal_projector(tower.layer_norm(x)), tokens)


def embed_qwen2_5_omni(model: Any, clips: Sequence[LogMel], size: int) -> list[Tensor]:
    """Audio embeddings ``[token, channel]`` of each clip, exact.

    The stock tower cuts a clip into chunks of 2 s, each with positions from 0 on, that attend to themselves alone;
    what its convolutions see past a chunk's end is zero.

    Args:
        model: A Qwen2_5OmniThinkerForConditionalGeneration.
        clips: Their features.
        size: Positions of the line, an even number; enough for the clips.
    """
    tower = model.model.audio_tower
    parts = [cut(clip, 2 * tower.config.n_window) for clip in clips]
    x = _whisper_layers(tower, [part for own in parts for part in own], size, alone=True)
    x, tokens = _pooled(x, parts)
    return _split(tower.proj(tower.ln_post(x)), tokens)


def embed_voxtral(model: Any, clips: Sequence[LogMel], size: int) -> list[Tensor]:
    """Audio embeddings ``[token, channel]`` of each clip, exact.

    The stock tower hears whole windows of 30 s, with all of the silence after the clip: nothing is masked, so nothing
    can be left out. It costs the same for each clip, once.

    Args:
        model: A VoxtralForConditionalGeneration.
        clips: Features, with a frame or more after the clip's own in which nothing is heard, or to its window's end.
        size: Positions of the line; enough for the clips.
    """
    tower, width = model.model.audio_tower, window_frames(model.config)
    whole = [filled(clip, width) for clip in clips]
    parts = [part for mel in whole for part in cut(LogMel(mel, mel.shape[1]), width)]
    x = tower.layer_norm(_whisper_layers(tower, parts, size))
    group = voxtral_group(model.config)
    x = x[: size // group * group].reshape(-1, group * x.shape[1])
    tokens = np.array([mel.shape[1] // (2 * group) for mel in whole])
    return _split(model.model.multi_modal_projector(x), tokens)


def voxtral_group(config: Any) -> int:
    """Positions of the tower that become one token, side by side."""
    return int(config.audio_config.intermediate_size // config.audio_config.hidden_size)


def _whisper_layers(
    tower: Any, parts: Sequence[LogMel], size: int, *, alone: bool = False
) -> Tensor:
    """``[position, channel]`` after the layers of a tower of Whisper's kind, of parts one after another in a line.

    Args:
        tower: The tower.
        parts: Features that attend to themselves alone, each with positions from 0 on.
        size: Positions of the line.
        alone: The convolutions see zeros past a part's end, else what its features hold there.
    """
    device, dtype = tower.conv1.weight.device, tower.conv1.weight.dtype
    valid = np.array([qwen2_audio_positions(part.frames) for part in parts])
    values = [part.values[:, : part.frames] if alone else part.values for part in parts]
    frames, begin = _frames_in_a_line(values, 2 * valid + 1)
    # The window of a position is it and its neighbours; before the first one lies a row of zeros.
    outputs = _windows(begin, 1, 2 * valid, 2 * size)
    x = to_device(frames, device).to(dtype)[to_device(outputs, device)]
    x = F.pad(F.gelu(_convolve(tower.conv1, x)), (0, 0, 1, 0))
    positions = _windows(1 + _starts(2 * valid), 2, valid, size)
    if alone:  # of an odd number of frames the last position sees one that is not there
        odd = np.array([part.frames % 2 == 1 for part in parts])
        positions[(np.cumsum(valid) - 1)[odd], 2] = 0
    x = F.gelu(_convolve(tower.conv2, x[to_device(positions, device)]))
    table = position_table(tower)[to_device(_padded(_within(valid), size), device)]
    return _run_layers(tower, (x + table).to(x.dtype), valid)


def position_table(tower: Any) -> Tensor:
    """``[position, channel]``: what a tower of Whisper's kind adds to each position."""
    if hasattr(tower, "embed_positions"):
        weight: Tensor = tower.embed_positions.weight
        return weight
    return tower.positional_embedding.positional_embedding.to(tower.conv1.weight.dtype)


def _pooled(x: Tensor, parts: Sequence[Sequence[LogMel]]) -> tuple[Tensor, Ints]:
    """Means of each two positions of a clip, ``[position / 2, channel]``; and the clips' numbers of them."""
    valid = np.array([sum(qwen2_audio_positions(p.frames) for p in own) for own in parts])
    tokens = valid // 2
    first = np.repeat(_starts(valid), tokens) + 2 * _within(tokens)
    index = to_device(_padded(first, len(x) // 2), x.device)
    # Halves first, the same bits: in float16 the sum may leave the range.
    return x[index] / 2 + x[index + 1] / 2, tokens


def embed_qwen3_omni(model: Any, clips: Sequence[LogMel], size: int) -> list[Tensor]:
    """Audio embeddings ``[token, channel]`` of each clip, equal to the stock tower's of the clip alone.

    The stock tower cuts a clip into chunks of a second, pads them to the longest of the call and convolves each alone.
    So a clip of one chunk is not padded: here it is, but the padding is held at zero after each convolution, as if it
    were the convolution's own.

    Args:
        model: A Qwen3OmniMoeThinkerForConditionalGeneration.
        clips: Their features.
        size: Positions of the line; enough for the clips.
    """
    tower = model.model.audio_tower
    window = 2 * tower.config.n_window
    frames = np.array([clip.frames for clip in clips])
    chunks = -(-frames // window)
    last = np.cumsum(chunks) - 1
    length = np.full(chunks.sum(), window)
    length[last] = frames - (chunks - 1) * window
    mel = np.zeros((len(length), clips[0].values.shape[0], window), dtype=np.float32)
    for i, clip in enumerate(clips):
        for n in range(chunks[i]):
            part = clip.values[:, n * window : min((n + 1) * window, clip.frames)]
            mel[last[i] + 1 - chunks[i] + n, :, : part.shape[1]] = part
    padded = np.where(np.repeat(chunks, chunks) == 1, length, window)
    x = torch.cat(
        [
            _convolve_chunks(tower, mel[i : i + OMNI_CHUNKS], padded[i : i + OMNI_CHUNKS])
            for i in range(0, len(mel), OMNI_CHUNKS)
        ]
    )
    real = np.flatnonzero(np.arange(x.shape[1]) < _eighths(length)[:, None])
    x = x.flatten(0, 1)[to_device(_padded(real, size), x.device)]
    tokens = np.add.reduceat(_eighths(length), last + 1 - chunks)
    x = _run_layers(tower, x, _omni_rows(tower.config, tokens))
    return _split(tower.proj2(tower.act(tower.proj1(tower.ln_post(x)))), tokens)


def _eighths(frames: Ints) -> Ints:
    return np.array([_eighth(int(n)) for n in frames])


def _convolve_chunks(tower: Any, mel: NDArray[np.float32], lengths: Ints) -> Tensor:
    """``[chunk, position, channel]`` of chunks of features, each convolved as if it had so many frames."""
    full = np.zeros((OMNI_CHUNKS, 1, *mel.shape[1:]), dtype=np.float32)
    full[: len(mel), 0] = mel
    limit = np.full(OMNI_CHUNKS, mel.shape[2])
    limit[: len(mel)] = lengths
    weight = tower.conv2d1.weight
    x, inside = to_device(full, weight.device).to(weight.dtype), to_device(limit, weight.device)
    for convolution in (tower.conv2d1, tower.conv2d2, tower.conv2d3):
        x, inside = F.gelu(convolution(x)), (inside + 1) // 2
        place = torch.arange(x.shape[3], device=x.device)
        x = x * (place < inside[:, None])[:, None, None]
    x = tower.conv_out(x.permute(0, 3, 1, 2).flatten(2))[: len(mel)]
    table = tower.positional_embedding.positional_embedding
    return x + table[: x.shape[1]].to(x.dtype)


def _omni_rows(config: Any, tokens: Ints) -> Ints:
    """Lengths of the windows that attend to themselves alone: whole ones of ``n_window_infer`` frames, and the rest."""
    window = 2 * config.n_window
    most = _eighth(window) * (config.n_window_infer // window)
    rows: list[int] = []
    for count in tokens.tolist():
        whole, rest = divmod(count, most)
        rows += [most] * whole + [rest] * (rest > 0)
    return np.array(rows)


def _run_layers(tower: Any, x: Tensor, rows: Ints) -> Tensor:
    """The tower's layers over a line ``[position, channel]`` of rows of these lengths."""
    attention = tower.layers[0].self_attn
    count = attention.num_heads
    heads = Heads(count, count, attention.head_dim, _block(tower))
    attend = RowAttention(rows, len(x), heads, x.device, load_kernels(x.device))
    for layer in tower.layers:
        x = tower_layer(layer, x, attend)
    return x


def _block(tower: Any) -> int:
    """Keys that a GPU takes at once: more of a tower that hears whole windows, however short the clip."""
    return LONG_BLOCK if tower.config.model_type == "voxtral_encoder" else Heads.block


def tower_layer(
    layer: Any, x: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """One layer's output, its own modules called in its own order: a third of the stock layer's time on the host.

    Args:
        layer: A layer of Whisper's kind.
        x: ``[..., channel]``.
        attend: Queries, keys and values, each of the shape of `x` -> what they attend to, likewise.
    """
    attention = layer.self_attn
    h = layer.self_attn_layer_norm(x)
    out = attend(attention.q_proj(h), attention.k_proj(h), attention.v_proj(h))
    x = x + attention.out_proj(out)
    x = x + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
    if x.dtype == torch.float16:  # as the stock layer does: its range is small
        most = torch.finfo(x.dtype).max - 1000
        x = x.clamp(-most, most)
    return x


def _starts(lengths: Ints) -> Ints:
    """``[row]``: where each of rows one after another begins."""
    return np.concatenate([[0], np.cumsum(lengths)[:-1]])


def _within(lengths: Ints) -> Ints:
    """``[place]``: 0, 1, ... in each of rows one after another."""
    return np.arange(lengths.sum()) - np.repeat(_starts(lengths), lengths)


def _padded(index: Ints, size: int) -> Ints:
    """The index with zeros after it; what they fetch is read by nobody."""
    out = np.zeros((size, *index.shape[1:]), dtype=np.int64)
    out[: len(index)] = index
    return out


def _frames_in_a_line(
    features: Sequence[NDArray[np.float32]], taken: Ints
) -> tuple[NDArray[np.float32], Ints]:
    """Features as ``[frame, mel bin]`` one clip after another, after a row of zeros; and where each clip begins.

    A clip has as many frames as are taken: zeros past the model's window, where a convolution pads with them.
    """
    begin = 1 + _starts(taken)
    out = np.zeros((1 + taken.sum(), features[0].shape[0]), dtype=np.float32)
    for values, first, count in zip(features, begin, taken, strict=True):
        part = values[:, :count].T
        out[first : first + len(part)] = part
    return out, begin


def _windows(begin: Ints, stride: int, counts: Ints, size: int) -> Ints:
    """``[output, 3]``: the inputs that each output of a convolution sees.

    Args:
        begin: ``[clip]``, its first input.
        stride: Of the convolution.
        counts: ``[clip]``, its outputs.
        size: Outputs in all, with padding.
    """
    place = _within(counts)
    out = (np.repeat(begin, counts) + stride * place)[:, None] + np.arange(-1, 2)
    out[place == 0, 0] = 0  # the row of zeros: what the convolution is padded with
    return _padded(out, size)


def _convolve(convolution: Any, windows: Tensor) -> Tensor:
    """``[output, channel]`` of a convolution, of the inputs ``[output, 3, channel]`` that each output sees."""
    weight = convolution.weight.transpose(1, 2).flatten(1)
    return F.linear(windows.flatten(1), weight, convolution.bias)


def _split(line: Tensor, lengths: Ints) -> list[Tensor]:
    return list(line[: lengths.sum()].split(lengths.tolist()))
