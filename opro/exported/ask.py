"""Labels WAV files by an OpenAI-compatible server: OPENAI_BASE_URL=http://HOST:PORT/v1 python ask.py CLIP.wav ..."""

import base64, http.client, json, math, os, sys, urllib.request
from pathlib import Path

if not sys.argv[1:] or "OPENAI_BASE_URL" not in os.environ:
    sys.exit(__doc__)
about = json.loads((Path(__file__).resolve().parent / "request.json").read_text(encoding="utf-8"))
url = os.environ["OPENAI_BASE_URL"].rstrip("/") + "/chat/completions"
if not url.startswith(("http://", "https://")) or "@" in url:
    sys.exit("OPENAI_BASE_URL is no address like http://HOST:PORT/v1, without a user or password")
headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"}
class Stay(urllib.request.HTTPRedirectHandler):  # the key goes to no other place
    def redirect_request(self, *about): return None

ask = urllib.request.build_opener(Stay).open
for name in sys.argv[1:]:
    content = Path(name).read_bytes()
    if "presentation" in about:  # the clip is repeated, levelled or padded before it is sent
        import io, soundfile, soxr
        from presentation import RATE, Presentation, present  # beside this file
        wave, rate = soundfile.read(name, dtype="float32", always_2d=True)
        wave = soxr.resample(wave.mean(axis=1), rate, RATE) if rate != RATE else wave.mean(axis=1)
        soundfile.write(file := io.BytesIO(), present(wave, Presentation(**about["presentation"])), RATE, "PCM_16", format="WAV")
        content = file.getvalue()
    clip = base64.b64encode(content).decode()
    share = dict.fromkeys(about["labels"], 0.0)
    for asked in about["requests"]:  # one for each order of the options
        body = json.dumps(asked["body"]).replace(about["audio"], clip)
        try:
            with ask(urllib.request.Request(url, body.encode(), headers), timeout=120) as reply:
                listed = json.loads(reply.read(2**22))["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        except (OSError, ValueError, RecursionError, http.client.HTTPException, KeyError, TypeError, IndexError) as error:
            sys.exit(f"{url}: no log-probabilities came back ({type(error).__name__}: {str(error)[:200]})")
        for label, words in asked["answers"].items():
            said = [math.exp(one["logprob"]) for one in listed if one["token"].strip() in words]
            if not said:
                sys.exit(f"{name}: the server lists no answer of {label}; it needs logprob_token_ids, or more top_logprobs")
            share[label] += sum(said) / len(about["requests"])
    share = {v: p * math.exp(b) for (v, p), b in zip(share.items(), about["bias"])}  # the decision threshold
    print(name, max(share, key=share.get), f"{share[about['labels'][0]] / sum(share.values()):.8f}", sep="\t")
