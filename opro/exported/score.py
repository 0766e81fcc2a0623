"""Labels WAV files with transformers alone: python score.py CLIP.wav ... prints file, label, P(first label)."""

import json, math, sys
from pathlib import Path

if not sys.argv[1:]:
    sys.exit(__doc__)

import soundfile, soxr, torch, transformers

here = Path(__file__).resolve().parent
about = json.loads((here / "export.json").read_text(encoding="utf-8"))
if "presentation" in about:
    from presentation import Presentation, present  # beside this file
base = here / "model" if (here / "model").is_dir() else about["base"]
device, dtype = ("cuda", getattr(torch, about["dtype"])) if torch.cuda.is_available() else ("cpu", torch.float32)
processor = transformers.AutoProcessor.from_pretrained(base, trust_remote_code=False)
options = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
model = getattr(transformers, about["class"]).from_pretrained(base, **options)
if (here / "adapter").is_dir():
    import peft
    model = peft.PeftModel.from_pretrained(model, str(here / "adapter"))
model.eval().to(device)

def log_probability(inputs, answer):  # of an answer's token ids, in nats over the whole vocabulary
    ids = torch.cat([inputs["input_ids"], torch.tensor([answer[:-1]], dtype=torch.long)], dim=1)
    given = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    given = {k: v.to(device, dtype if v.is_floating_point() else v.dtype) for k, v in given.items()}
    with torch.inference_mode():
        logp = model(**given).logits[0, -len(answer):].double().log_softmax(-1)
    return logp[range(len(answer)), answer].sum()

for name in sys.argv[1:]:
    try:
        wave, rate = soundfile.read(name, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        sys.exit(f"{name}: {error}")
    if len(wave) > 30 * rate:
        print(f"{name}: longer than the model's 30 s; only these are heard", file=sys.stderr)
    wave = soxr.resample(wave.mean(axis=1), rate, 16_000) if rate != 16_000 else wave.mean(axis=1)
    if "presentation" in about:
        wave = present(wave, Presentation(**about["presentation"]))
    rows = []  # one for each order of the options
    for asked in about["asked"]:
        inputs = processor(text=asked["text"], audio=[wave], sampling_rate=16_000, return_tensors="pt")
        answers = [asked["answers"][label] for label in about["labels"]]
        rows.append([torch.stack([log_probability(inputs, one) for one in own]).logsumexp(0) for own in answers])
    logp = torch.tensor(rows).logsumexp(0) - math.log(len(rows))
    logp += torch.tensor(about["bias"])  # the decision threshold
    print(name, about["labels"][int(logp.argmax())], f"{float(logp.softmax(0)[0]):.8f}", sep="\t")
