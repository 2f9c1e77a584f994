"""The report of quantize: its numbers, its verdict, and that it can be read."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from ssm_export.documents.tables import render
from ssm_export.errors import SsmExportError
from ssm_export.prediction import weights_read
from ssm_export.quantization.drift import DriftNotRun, DriftPoint
from ssm_export.quantization.evaluation import Quality
from ssm_export.quantization.knapsack import Option
from ssm_export.quantization.mixed import Choice, MixedChoice
from ssm_export.quantization.plan import Plan
from ssm_export.quantization.report import (
    AblationRow,
    Ceiling,
    Footprint,
    NotRun,
    QuantizeReport,
    decode_ceiling,
)
from ssm_export.quantization.sensitivity import Sensitivity
from ssm_export.targets import get_target

PARAMETERS_130M = 50288 * 768 + 24 * (
    768 * 3072 + 1536 * 80 + 48 * 1536 + 1536 + 1536 * 16 + 1536 + 5 * 1536 + 1536 * 768 + 768
)
STATES_130M = 24 * (1536 * 16 + 1536 * 4) * 4
PARAMETERS_2B7 = 50288 * 2560 + 64 * (
    2560 * (2 * 5120 + 2 * 128 + 80) + 5 * 5376 + 3 * 80 + 5120 + 5120 * 2560 + 2560
)
STATES_2B7 = 64 * (80 * 64 * 128 + 5376 * 4) * 4


@pytest.mark.parametrize(
    ("target", "parameters", "states", "bytes_each", "expected"),
    [
        ("h100", PARAMETERS_130M, STATES_130M, 2, 11381),
        ("h100", PARAMETERS_130M, STATES_130M, 1, 22170),
        ("h100", PARAMETERS_2B7, STATES_2B7, 2, 522),
        ("h100", PARAMETERS_2B7, STATES_2B7, 1, 985),
        ("jetson-orin-nano", PARAMETERS_130M, STATES_130M, 2, 258),
        ("jetson-agx-orin", PARAMETERS_130M, STATES_130M, 1, 1513),
    ],
)
def test_ceilings_are_those_of_the_roofline(target, parameters, states, bytes_each, expected):
    """tok/s from BW/(W + 2·state + 2·conv) as tabulated for published shapes; H100 at 3.0 TB/s."""
    chip = get_target(target)
    chip = dataclasses.replace(chip, bandwidth_gb_s=3000) if target == "h100" else chip
    found = decode_ceiling(parameters * bytes_each, states, chip)
    assert found == pytest.approx(expected, rel=5e-3)


def test_a_class_of_cards_has_no_ceiling():
    with pytest.raises(SsmExportError, match=r"rtx-any.*bandwidth"):
        decode_ceiling(1.0, 1.0, get_target("rtx-any"))


def vocabulary_model(tied: bool, codes: str) -> ir.Model:
    """ids → rows of (96,64) → product with a head (96,64), stored in codes or as fp32."""
    vocabulary, width = 96, 64
    nodes, stored = [], []

    def weight(name: str) -> str:
        if codes == "float":
            stored.append(numpy_helper.from_array(np.ones((vocabulary, width), np.float32), name))
            return name
        kind = {"int8": TensorProto.INT8, "int4": TensorProto.INT4}[codes]
        block = {"int8": 0, "int4": 32}[codes]
        stored.append(helper.make_tensor(name, kind, (vocabulary, width), [1] * vocabulary * width))
        shape = (vocabulary, width // block) if block else (vocabulary,)
        stored.append(numpy_helper.from_array(np.ones(shape, np.float16), f"{name}.scale"))
        extra = {"axis": 1, "block_size": block} if block else {"axis": 0}
        nodes.append(
            helper.make_node("DequantizeLinear", [name, f"{name}.scale"], [f"{name}.real"], **extra)
        )
        return f"{name}.real"

    table = weight("embedding")
    head = table if tied else weight("head")
    nodes += [
        helper.make_node("Gather", [table, "ids"], ["x"]),
        helper.make_node("Gemm", ["x", head], ["logits"], transB=1),
    ]
    kind = TensorProto.FLOAT if codes == "float" else TensorProto.FLOAT16
    graph = helper.make_graph(
        nodes,
        "vocabulary",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("logits", kind, ["batch", vocabulary])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    return ir.from_proto(model)


@pytest.mark.parametrize(
    ("tied", "codes", "expected"),
    [
        (True, "float", 96 * 64 * 4),
        (False, "float", 96 * 64 * 4 + 64 * 4),
        (True, "int8", 96 * 64 + 96 * 2),
        (False, "int8", 96 * 64 + 96 * 2 + 64 + 2),
        (True, "int4", 96 * 64 // 2 + 96 * 2 * 2),
        (False, "int4", 96 * 64 // 2 + 96 * 2 * 2 + 32 + 2 * 2),
    ],
)
def test_a_token_reads_the_head_whole_and_one_row_of_an_embedding(tied, codes, expected):
    assert weights_read(vocabulary_model(tied, codes)) == expected


def quality(
    bits: float, kl: float = 0.0, top1: float = 1.0, per_byte: bool = True, base: float = 4.0
) -> Quality:
    """Of rows on which the float model has ``base`` bits per token, of four bytes each."""
    by_byte = (bits / 4, (bits - base) / 4) if per_byte else (None, None)
    perplexity = 2.0 ** min(bits, 99)
    worst = (kl * 30, 3, 411)
    return Quality(bits, by_byte[0], bits - base, by_byte[1], perplexity, kl, top1, 4088, *worst)


def full_report(layers: int = 64) -> QuantizeReport:
    """Everything in it, with names and numbers as long as they get."""
    site = "backbone.layers.{}.mixer.out_proj"
    sensitive = tuple(
        Sensitivity(site.format(63 - n), "weights int4/128, gptq, rotated 128", 0.1 / 2**n, 9)
        for n in range(12)
    )
    cheap, dear = Option("int4", "int4/128", 6_700_000, 0.02), Option("int8", "int8", 13 << 20, 0.0)
    choices = tuple(
        Choice(site.format(n), cheap, (cheap, dear), "not int8: 2.0e-02 bits for 6.9 MB")
        for n in range(layers)
    )
    made = quality(4.011, 0.0123, 0.9876)
    return QuantizeReport(
        bundle="out",
        source="in",
        recipe={
            "name": "mixed",
            "description": "int4 where it costs little, int8 or more where not",
        },
        before=Footprint(5_405_000_000, 5_405_000_000, 173_000_000),
        after=Footprint(1_450_000_000, 1_400_000_000, 43_000_000),
        evaluated_on="8 rows of 512 tokens, generated by the float model itself",
        float_quality=quality(4.0),
        quality=made,
        step_quality=quality(3.52, 0.0200, 0.9850, base=3.5),  # on other rows
        ceiling=Ceiling("jetson-agx-orin", 204.8, 35.6, 113.25),
        snr_db=(math.inf, *np.linspace(48, 19, layers).tolist(), 21.5),
        drift={
            "int8 state": [
                DriftPoint(4096, 1.2e-3, "past_ssm.63", math.inf, 12.0),
                DriftNotRun(65536, "it would take 900 s (14 ms a step), the limit is 300 s"),
            ]
        },
        sensitivities=sensitive,
        ablation=(AblationRow("recipe", made), AblationRow("plain", quality(5.5, 1.2, 0.5))),
        mixed=MixedChoice(
            {}, Plan(), choices, "weights of at most 0.4 × fp16", 0.39, 0.02, 0.03, 1
        ),
        limit_bits=0.05,
        notes=("768 input channels cannot be cut as int4 in blocks of 512: int4 in blocks of 256",),
        not_run=(NotRun("drift over 65 536 steps", "it was not asked for"),),
        seconds=12.34567,
    )


def test_the_tables_say_what_matters_in_100_columns():
    text = render(full_report().table(), width=100)
    assert max(map(len, text.splitlines())) <= 100
    for words in (
        "5.41 GB",
        "1.45 GB",
        "× 0.268",
        "(predicted)",
        "a prediction for jetson-agx-orin",
        "113",
        "1.0028",
        "+0.0028",
        "+0.0050 bits",
        "98.76 %",
        "98.50 %",
        "row 3, token 411",
        "+0.0050 bits per byte: within the 0.05",
        "exact",
        "The 10 most sensitive of 12",
        "backbone.layers.54.mixer.out_proj",
        "+0.3750",
        "past_ssm.63",
        "1.20e-03",
        "65,536",
        "not run: it would take 900 s",
        "64 × int4/128",
        "52 more are in the JSON",
        "note: 768 input channels",
        "not run: drift over 65 536 steps (it was not asked for)",
    ):
        assert words in text, words
    assert "backbone.layers.53.mixer.out_proj" not in text.split("Chosen formats")[0]


def test_the_chart_of_a_deep_model_shows_the_worst_of_each_group():
    snr = [30.0] * 64
    snr[41] = 7.0
    report = dataclasses.replace(full_report(), snr_db=(math.inf, *snr, 20.0))
    lines = render(report.table()).split("Signal to noise")[1].split("The 10 most")[0].splitlines()
    shown = [line for line in lines if "█" in line]
    assert len(shown) <= 26
    assert [line.split("  ")[0].strip() for line in shown if " 7.0" in line] == [
        "layers 39–41, worst"
    ]


def test_the_json_is_json_and_says_what_is_a_prediction():
    report = full_report()
    document = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert document["ok"] is True
    assert document["decode_ceiling"]["kind"] == "prediction"
    assert document["size"]["after"]["weights_file"] == 1_450_000_000
    assert document["quality"]["step_graph"]["top1"] == 0.985
    assert document["snr_db"][0] is None
    assert document["lost_bits"] == pytest.approx(0.005)
    assert document["drift"]["int8 state"][0]["state_error"] == 1.2e-3
    assert document["drift"]["int8 state"][0]["logits_error"] is None
    assert "900 s" in document["drift"]["int8 state"][1]["reason"]
    assert len(document["sensitivities"]) == 12
    assert len(document["mixed"]["choices"]) == 64
    assert document["not_run"] == [
        {"what": "drift over 65 536 steps", "why": "it was not asked for"}
    ]


@pytest.mark.parametrize(
    ("simulated", "steps", "limit", "ok"),
    [
        (4.1, 0.1, 0.05, True),
        (4.3, 0.1, 0.05, False),
        (4.1, 0.3, 0.05, False),  # the divergence of the shipped graph counts too
        (3.9, None, 0.05, True),
        (math.nan, 0.1, 0.05, False),
        (4.1, math.nan, 0.05, False),
        (9.0, None, None, True),
        (math.nan, None, None, False),
    ],
)
def test_the_limit_of_the_recipe_decides(simulated, steps, limit, ok):
    report = dataclasses.replace(
        full_report(),
        quality=quality(simulated),
        step_quality=None if steps is None else quality(4.0, steps),
        limit_bits=limit,
    )
    assert report.ok is ok
    json.dumps(report.as_json(), allow_nan=False)
    assert ("NOT WITHIN" in render(report.table())) == (limit is not None and not ok)


def test_rows_that_are_no_text_are_judged_by_the_divergence_per_token():
    report = dataclasses.replace(
        full_report(),
        float_quality=quality(4.0, per_byte=False),
        quality=quality(3.9, 0.04, per_byte=False),
        step_quality=None,
    )
    assert report.lost_bits == pytest.approx(0.04)
    assert "KL from float +0.0400 bits per token: within" in render(report.table())
    shipped = quality(4.0, 0.045, per_byte=False)
    text = render(dataclasses.replace(report, step_quality=shipped).table())
    assert "KL from float +0.0450 bits per token: within" in text
    assert "worse of KL of the quantized model and KL of the step graph" in text


def test_the_limit_says_that_the_step_graph_counts_by_its_divergence():
    text = render(full_report().table(), width=100)
    assert "counted: the worse of bits that the model lost and KL of the step graph" in text
    alone = dataclasses.replace(full_report(), step_quality=None)
    assert "counted:" not in render(alone.table())


def test_a_report_with_the_least_in_it():
    report = QuantizeReport(
        "out",
        "in",
        {"name": "w8a16", "description": "int8 weights"},
        Footprint(1000, 1000, 10),
        Footprint(500, 500, 10),
        "4088 tokens",
        quality(4.0),
        quality(4.0001),
    )
    text = render(report.table())
    assert "predict" not in text
    assert "Drift" not in text
    assert "× 0.500" in text
