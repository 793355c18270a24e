"""All of timm's and transformers' Vision Transformers: none opens wrong. Writes the table of docs/checkpoints.md."""

import os

import pytest

REASON = "make test-parity installs them"
pytest.importorskip("torch", reason=REASON)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # after that: where torch is missing, other tests run in this process
for library in ("timm", "transformers"):
    pytest.importorskip(library, reason=REASON)

from tests.parity import architectures  # noqa: E402

TOLERANCE = 1e-4  # absolute, on logits whose deviation is about 1
REFUSED = {  # names, and the reason that the message must name
    "_18x2_": "several attentions",
    "vit_d": "differential attention",
    "aimv2_": "patch_embed.norm",
    "_resnet": "batch normalisation",
    "_mci_": "no known model",
    "sapiens2": "fewer keys",
    "gated GELU": "hidden_act",
    "Siglip2": "NaFlex",
}

_outcomes: dict[str, list[architectures.Outcome]] = {"timm": [], "transformers": []}


def checked(source: str, outcome: architectures.Outcome) -> None:
    """Remember it, and hold it to what it has to be."""
    _outcomes[source].append(outcome)
    reason = next((reason for part, reason in REFUSED.items() if part in outcome.name), None)
    if reason is None:
        assert outcome.refused is None, outcome
        assert outcome.error is not None and outcome.error < TOLERANCE, outcome
    else:
        assert outcome.refused is not None and reason in outcome.refused, outcome


@pytest.mark.parametrize("name", architectures.timm_names())
def test_timm(name):
    checked("timm", architectures.check_timm(name))


@pytest.mark.parametrize("name", architectures.HUGGINGFACE)
def test_transformers(name):
    checked("transformers", architectures.check_huggingface(name))


@pytest.mark.parametrize("name", architectures.timm_names())
def test_name_of_a_file(name):
    """A whole model's shapes, and the name of timm's file: the spec is timm's, heads, epsilon and GELU included."""
    if any(part in name for part in REFUSED):
        pytest.skip("is refused")
    assert architectures.wrong_fields(name) == {}


BACK = [
    name
    for name in architectures.HUGGINGFACE
    if name not in ("SiglipModel", "Siglip2VisionModel") and "gated GELU" not in name
]


@pytest.mark.parametrize("name", BACK)
def test_back_to_transformers(name):
    assert architectures.written_back(name) < TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_224",
        "vit_giant_patch14_reg4_dinov2",
        "vit_base_patch16_clip_quickgelu_224",
        "vit_base_patch16_siglip_224",
        "eva02_tiny_patch14_336",
        "eva02_base_patch14_448",
        "eva02_base_patch16_clip_224",
        "vit_small_patch16_dinov3_qkvb",
        "vit_small_plus_patch16_dinov3",
        "vit_small_patch16_rope_mixed_224",
        "vit_pe_core_tiny_patch16_384",
        "beit_base_patch16_224",
        "vit_base_patch16_xp_224",
        "vit_base_patch16_rpn_224",
    ],
)
def test_back_to_timm(name):
    """The same bits in the same names."""
    assert architectures.back_to_timm(name) == []


def test_the_table_is_written():
    """Last, and only where all ran: with -k the page stays as it is."""
    names = [*architectures.timm_names(), *architectures.HUGGINGFACE]
    if sorted(outcome.name for rows in _outcomes.values() for outcome in rows) != sorted(names):
        pytest.skip("not all architectures ran")
    architectures.write_table({"timm": _outcomes["timm"], "transformers": _outcomes["transformers"]})
    assert all(f"| {name} |" in architectures.PAGE.read_text(encoding="utf-8") for name in names)
