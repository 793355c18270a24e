"""What Hugging Face's transformers calls the arrays of Vision Transformers."""

from plsc.models.vit_parts import NO_POOLING, NO_PRE_LOGITS, NO_RESNET, PLAIN, POSITION, QUERY_KEY_VALUE, qkv, stated
from plsc.weights.layouts import HuggingFace, Layout, Rule, Setting, never

HUGGINGFACE = Layout(
    name="huggingface",
    title="Hugging Face's ViT",
    probe="embeddings.patch_embeddings.projection.weight",
    prefix="vit.",
    container="folder",
    facts=stated,
    lacks=(NO_PRE_LOGITS, NO_POOLING, *PLAIN, NO_RESNET),
    rules=(
        Rule("cls_token", "embeddings.cls_token"),
        Rule("pos_embed", "embeddings.position_embeddings", POSITION),
        Rule("patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
        Rule("blocks.{i}.norm1.{p}", "encoder.layer.{i}.layernorm_before.{p}"),
        Rule("blocks.{i}.norm2.{p}", "encoder.layer.{i}.layernorm_after.{p}"),
        qkv("blocks.{i}.attn.qkv.{p}", "encoder.layer.{i}.attention.attention.{part}.{p}", QUERY_KEY_VALUE),
        Rule("blocks.{i}.attn.proj.{p}", "encoder.layer.{i}.attention.output.dense.{p}"),
        Rule("blocks.{i}.mlp.fc1.{p}", "encoder.layer.{i}.intermediate.dense.{p}"),
        Rule("blocks.{i}.mlp.fc2.{p}", "encoder.layer.{i}.output.dense.{p}"),
        # transformers 5
        Rule("blocks.{i}.norm1.{p}", "layers.{i}.layernorm_before.{p}", written=never),
        Rule("blocks.{i}.norm2.{p}", "layers.{i}.layernorm_after.{p}", written=never),
        qkv("blocks.{i}.attn.qkv.{p}", "layers.{i}.attention.{part}_proj.{p}", ("q", "k", "v"), written=never),
        Rule("blocks.{i}.attn.proj.{p}", "layers.{i}.attention.o_proj.{p}", written=never),
        Rule("blocks.{i}.mlp.fc{n}.{p}", "layers.{i}.mlp.fc{n}.{p}", written=never),
        Rule("norm.{p}", "layernorm.{p}"),
        Rule("head0.{p}", "pooler.dense.{p}"),
        Rule("head.{p}", "classifier.{p}"),
    ),
    huggingface=HuggingFace(
        architectures=("ViTForImageClassification", "ViTModel"),
        constants={
            "model_type": "vit",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "dtype": "float32",
        },
        derived=lambda spec: {"intermediate_size": int(spec["embed_dim"] * spec.get("mlp_ratio", 4.0))},
        settings=(
            Setting("hidden_size", "embed_dim"),
            Setting("num_hidden_layers", "depth"),
            Setting("num_attention_heads", "num_heads", stated=True),
            Setting(
                "hidden_act",
                "act",
                {
                    "gelu": "gelu",
                    "gelu_pytorch_tanh": "gelu_tanh",
                    "gelu_new": "gelu_tanh",
                    "gelu_fast": "gelu_tanh",
                },
                stated=True,
                default="gelu",
            ),
            Setting("layer_norm_eps", "epsilon", stated=True, default=1e-6),
            Setting("image_size", "img_size", stated=True),
            Setting("patch_size", "patch_size"),
            Setting("num_channels", "in_chans"),
            Setting("qkv_bias", "qkv_bias", default=True),
        ),
    ),
)
