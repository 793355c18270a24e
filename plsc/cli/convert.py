"""Rewrite weights in another format: plsc's own, timm, Hugging Face, Google's npz, or .pdparams.

The source may be any format that Global.pretrained_model takes. Values are not changed: converting
there and back gives the same bits.
"""

import dataclasses

EXAMPLES = """\
  plsc convert output/mine --to huggingface --output mine_hf
  plsc convert output/mine --ema --to timm --output mine.safetensors
  plsc convert ViT-B_16.npz --to safetensors --output vit_b16.safetensors
  plsc convert vit_base_patch16_224.pth --to google --output vit.npz --backbone
"""


def add_arguments(parser):
    from plsc.weights import FORMATS

    parser.add_argument("source", help="a weights file, checkpoint, run directory or Hugging Face folder")
    parser.add_argument("--to", required=True, choices=FORMATS, help="the format to write")
    parser.add_argument("--output", required=True, metavar="PATH", help="a file; for huggingface a folder")
    parser.add_argument("--backbone", action="store_true", help="leave out head and pre-logits")
    parser.add_argument("--ema", action="store_true", help="the averaged weights of a plsc or TensorFlow checkpoint")
    parser.add_argument("--num-heads", type=int, metavar="N", help="attention heads, where the source does not tell")


def run(arguments) -> int:
    from plsc import environment
    from plsc.weights import read, write

    if arguments.to == "pdparams":
        environment.prepare()
        environment.import_paddle()
    source = read(arguments.source, "ema" if arguments.ema else "model")
    if arguments.num_heads:
        spec = {**source.card.spec, "num_heads": arguments.num_heads}
        source.card = dataclasses.replace(source.card, spec=spec)
    written = write(source, arguments.to, arguments.output, backbone=arguments.backbone)
    spec = source.card.spec
    print(
        f"{source.path}: {len(source.tensors)} arrays in the names of {source.layout}; "
        f"width {spec.get('embed_dim')}, depth {spec.get('depth')}, heads {spec.get('num_heads')}, "
        f"classes {spec.get('class_num')}"
    )
    for name, shape in source.unknown.items():
        print(f"  left out, unknown: {name} {list(shape)}")
    if arguments.to == "huggingface" and not source.card.preprocess:
        print("  no preprocessor_config.json: the source does not say how its pictures are prepared")
    for path in written:
        print(f"written {path}")
    return 0
