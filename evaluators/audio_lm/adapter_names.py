"""Names of an adapter's tensors and of the modules that it changes, in the layouts of transformers 4 and 5."""

# (transformers 4, transformers 5): where the parts of Qwen2-Audio, Voxtral and Audio Flamingo 3 lie below
# ``base_model.model.``; and those of the thinker of Qwen's Omni models, by itself or in the whole model.
LAYOUTS = (
    ("language_model.lm_head", "lm_head"),
    ("language_model.model", "model.language_model"),
    ("audio_tower", "model.audio_tower"),
    ("multi_modal_projector", "model.multi_modal_projector"),
    ("model.layers", "model.language_model.layers"),
    ("model.embed_tokens", "model.language_model.embed_tokens"),
    ("thinker.lm_head", "lm_head"),
    ("thinker.model", "model.language_model"),
    ("thinker.audio_tower", "model.audio_tower"),
)
PREFIX = "base_model.model."


def new_name(key: str) -> str:
    """A tensor's name in transformers 5, of its name there or in transformers 4."""
    inner = key.removeprefix(PREFIX)
    for old, new in LAYOUTS:
        if inner.startswith(f"{old}."):
            return f"{PREFIX}{new}{inner.removeprefix(old)}"
    return key


def old_name(name: str) -> str:
    """A module's name in transformers 4, of its name in transformers 5."""
    for old, new in LAYOUTS:
        if f"{name}.".startswith(f"{new}."):
            return old + name.removeprefix(new)
    return name
