"""Adapters of every kind against plain transformers and peft: python tests/bench_adapters.py

For each kind and layout: how far our scores lie from plain peft's, and how far plain peft's lie from the base's, in
nats; of what is refused, the sentence.
"""

import logging
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import peft
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent))
from adapters import EXACT, base_model, in_old_layout, make_adapter, plain_peft, plain_scores
from common import DEMO, LABELS

from evaluators.audio_lm.checkpoint import POCKET, open_checkpoint
from evaluators.audio_lm.scorer import AudioScorer
from evaluators.errors import UserError
from evaluators.files import shipped
from evaluators.manifest import read_manifest
from evaluators.prompts import read_prompts

REFUSED = {
    "aLoRA": peft.LoraConfig(target_modules=["q_proj"], alora_invocation_tokens=[3, 4]),
    "QALoRA": peft.LoraConfig(target_modules=["q_proj"], use_qalora=True),
    "some tokens trained": peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3]),
    "parameters as targets": peft.LoraConfig(target_parameters=["gate_up_proj"]),
    "layers repeated": peft.LoraConfig(
        target_modules=["q_proj"], layer_replication=[[0, 2], [1, 3]]
    ),
    "PiSSA by iterations": peft.LoraConfig(
        target_modules=["q_proj"], init_lora_weights="pissa_niter_4"
    ),
    "prompt tuning": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "P-tuning": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prefix tuning": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "IA3": peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    "LoHa": peft.LoHaConfig(target_modules=["q_proj"]),
    "LoKr": peft.LoKrConfig(target_modules=["q_proj"]),
    "AdaLoRA": peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10),
    "VeRA": peft.VeraConfig(target_modules=["q_proj"]),
    "OFT": peft.OFTConfig(target_modules=["q_proj"]),
}


def main() -> None:
    """Prints the table."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    prompt = read_prompts(shipped("prompts/seeds/baselines.yaml"), LABELS)[0]
    clips = read_manifest(DEMO, LABELS, "dev")[:6]
    base = plain_scores(base_model(), prompt, clips)
    print(
        f"transformers {transformers.__version__}, peft {peft.__version__}; float32, {len(clips)} clips"
    )
    print(
        f"{'kind':28}{'moves the base by':>18}{'transformers 5':>16}{'transformers 4':>16}   nats"
    )
    with tempfile.TemporaryDirectory() as name:
        for number, (title, kind) in enumerate(EXACT.items()):
            new = make_adapter(kind, Path(name) / f"{number}")
            old = in_old_layout(kind, new, Path(name) / f"{number}-old")
            plain = plain_scores(plain_peft(new), prompt, clips)
            apart = []
            for folder in (new, old):
                one = AudioScorer(open_checkpoint(str(folder)), "cpu", "float32")
                apart.append(np.abs(one.score([prompt], clips).logp[0] - plain).max())
            moved = np.abs(plain - base).max()
            print(f"{title:28}{moved:18.2f}{apart[0]:16.1e}{apart[1]:16.1e}", flush=True)
        for number, (title, config) in enumerate(REFUSED.items()):
            folder = Path(name) / f"refused-{number}"
            config.base_model_name_or_path = str(POCKET / "base")
            config.save_pretrained(str(folder))
            try:
                open_checkpoint(str(folder))
                print(f"{title:28}NOT REFUSED")
            except UserError as error:
                print(f"{title:28}{str(error).replace(str(folder), 'FOLDER')}")


if __name__ == "__main__":
    main()
