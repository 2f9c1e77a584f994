"""A report of quantize with every part that it can have."""

from __future__ import annotations

from typing import Any


def quality(lost: float, kl: float) -> dict[str, Any]:
    """A quality as quantize writes it; the numbers are made up."""
    return {
        "bits_per_token": 4.0 + lost * 4,
        "bits_per_byte": 1.0 + lost,
        "lost_bits_per_token": lost * 4,
        "lost_bits_per_byte": lost,
        "perplexity": 2 ** (4.0 + lost * 4),
        "kl_bits": kl,
        "top1": 1.0 - kl,
        "tokens": 1000,
        "worst_kl_bits": kl * 50,
        "worst_row": 0,
        "worst_token": 3,
    }


def quantize_document() -> dict[str, Any]:
    """What quantize writes into ``reports/quantize.json``, with every part that it can have."""
    sizes = {"weights_file": 4_000_000, "read_per_token": 3_900_000, "states_per_row": 300_000}
    return {
        "ok": True,
        "bundle": "/home/somebody/work/toy-w8a16",
        "source": "/home/somebody/work/toy",
        "recipe": {"name": "w8a16", "description": "int8 weights"},
        "size": {"before": sizes, "after": {name: value // 4 for name, value in sizes.items()}},
        "decode_ceiling": {"target": "h100", "bandwidth_gb_s": 3350, "before": 900, "after": 3000},
        "evaluated_on": "/home/somebody/held out.txt: 4096 tokens",
        "quality": {
            "float": quality(0.0, 0.0),
            "quantized": quality(0.001, 5e-4),
            "step_graph": quality(0.002, 6e-4),
        },
        "lost_bits": 0.002,
        "limit_bits": 0.005,
        "snr_db": [40.0, None, 38.5, 37.0, 45.0],
        "drift": {
            "int8 state": [
                {"steps": 4096, "state_error": 0.06, "state": "past_ssm.1", "logits_error": 0.01},
                {"steps": 65536, "reason": "it would take 332 s"},
            ]
        },
        "sensitivities": [
            {
                "site": f"layers.{i}.in_proj",
                "what": "weights int8",
                "kl_bits": 1e-5 / (i + 1),
                "snr_db": 40.0 + i,
            }
            for i in range(3)
        ],
        "ablation": [
            {"variant": "recipe", **quality(0.001, 5e-4)},
            {"variant": "without rotation", **quality(0.01, 5e-3)},
        ],
        "mixed": {
            "budget": "4.5 bits",
            "choices": [
                {
                    "site": "head",
                    "chosen": {"stored": "int8", "bytes": 960, "kl_bits": 1e-6},
                    "options": [],
                    "why": "sensitive",
                }
            ],
        },
        "notes": ["step ort: kept its body"],
        "not_run": [{"what": "long drift", "why": "takes too long"}],
    }
