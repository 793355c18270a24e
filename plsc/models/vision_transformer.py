"""The Vision Transformer (Dosovitskiy et al., 2021, https://arxiv.org/abs/2010.11929).

Reference: google-research/vision_transformer. Parameter names follow PLSC, and timm where
PLSC has none. Linear weights are [in, out], as Paddle stores them.
"""

import dataclasses
import re
from collections.abc import Iterable

import numpy as np
import paddle
from paddle import nn

from plsc.errors import ConfigError
from plsc.models.init import init_head, init_weights
from plsc.models.layers import AttentionPool, Block, Dropout, PatchEmbed
from plsc.models.resnet import HybridEmbed
from plsc.models.spec import ViTSpec, pair, reduction


def sincos_position_embedding(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed sine-cosine embedding [rows × columns, width] of "Better plain ViT baselines" (Beyer et al., 2022)."""
    y, x = np.mgrid[: grid[0], : grid[1]]
    frequency = 1.0 / 10000.0 ** (np.arange(width // 4) / (width // 4 - 1 or 1))
    y, x = (axis.reshape(-1, 1) * frequency for axis in (y, x))
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype("float32")


class VisionTransformer(nn.Layer):
    """Images [B, in_chans, height, width] float32 → logits [B, class_num].

    It offers all that plsc.models.base describes.
    """

    def __init__(self, spec: ViTSpec):
        super().__init__()
        self.spec = spec
        width, approximate = spec.embed_dim, spec.act == "gelu_tanh"
        hidden = spec.mlp_width
        if spec.resnet_layers is None:
            self.patch_embed = PatchEmbed(spec.img_size, spec.patch_size, spec.in_chans, width)
        else:
            self.patch_embed = HybridEmbed(
                spec.img_size, spec.patch_size, spec.in_chans, width, spec.resnet_layers, spec.resnet_width
            )
        if spec.class_token:
            self.cls_token = self.create_parameter([1, 1, width])
        if spec.reg_tokens:
            self.reg_token = self.create_parameter([1, spec.reg_tokens, width])
        rows = spec.grid[0] * spec.grid[1] + spec.embedded_prefix
        self.pos_embed = self.create_parameter([1, rows, width])
        if spec.pos_embed == "sincos2d":
            table = sincos_position_embedding(spec.grid, width)
            prefix = np.zeros([spec.embedded_prefix, width], "float32")
            self.pos_embed.set_value(np.concatenate([prefix, table])[None])
            self.pos_embed.stop_gradient = True
        self.pos_drop = Dropout(spec.drop_rate)
        rates = np.linspace(0.0, spec.drop_path_rate, spec.depth).tolist()
        self.blocks = nn.LayerList(
            Block(
                width,
                spec.num_heads,
                hidden,
                qkv_bias=spec.qkv_bias,
                qk_scale=spec.qk_scale,
                drop_rate=spec.drop_rate,
                attn_drop_rate=spec.attn_drop_rate,
                drop_path_rate=rate,
                epsilon=spec.epsilon,
                layer_scale=spec.layer_scale,
                approximate_gelu=approximate,
            )
            for rate in rates
        )
        self.norm = nn.Identity() if spec.fc_norm else nn.LayerNorm(width, epsilon=spec.epsilon)
        if spec.pool == "map":
            self.attn_pool = AttentionPool(width, spec.num_heads, hidden, spec.epsilon, approximate)
        if spec.fc_norm:
            self.fc_norm = nn.LayerNorm(width, epsilon=spec.epsilon)
        if spec.representation_size:
            self.head0 = nn.Linear(width, spec.representation_size)
        init_weights(self, spec.weight_init)
        self.reset_classifier(spec.class_num)

    # -- the model protocol ---------------------------------------------------------------

    def forward(self, x):
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x):
        """Images → normalised tokens [B, prefix + patches, C]."""
        x = self._embed(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_head(self, x, pre_logits: bool = False):
        """Tokens → logits [B, class_num], or with pre_logits the features before the head."""
        spec = self.spec
        if spec.pool == "token":
            x = x[:, 0]
        elif spec.pool == "avg":
            x = x[:, spec.prefix_tokens :].mean(axis=1)
        else:
            x = self.attn_pool(x)
        if spec.fc_norm:
            x = self.fc_norm(x)
        if spec.representation_size:
            x = paddle.tanh(self.head0(x))
        return x if pre_logits else self.head(x)

    def reset_classifier(self, class_num: int) -> None:
        """A new head for `class_num` classes, drawn as the spec says; 0 leaves it out."""
        spec = self.spec = dataclasses.replace(self.spec, class_num=class_num)
        if class_num == 0:
            self.head = nn.Identity()
            return
        self.head = nn.Linear(spec.representation_size or spec.embed_dim, class_num)
        init_head(self.head, spec.weight_init, spec.head_init, spec.head_bias)

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer-wise lr decay: 0 the embeddings, 1 … depth the blocks, depth + 1 the rest."""
        block = re.match(r"blocks\.(\d+)\.", name)
        if block:
            return int(block.group(1)) + 1
        embeddings = ("patch_embed.", "cls_token", "reg_token", "pos_embed")
        return 0 if name.startswith(embeddings) else self.spec.depth + 1

    def no_weight_decay(self) -> set[str]:
        """Parameters that recipes without decay on embeddings leave out."""
        names = {"cls_token", "reg_token", "pos_embed", "attn_pool.latent"}
        return {name for name, _ in self.named_parameters() if name in names}

    def attention_maps(self, x) -> list:
        """Images → for each block the attention weights [B, H, N, N], float32, without dropout."""
        training = self.training
        self.eval()
        try:
            with paddle.no_grad():
                x, maps = self._embed(x), []
                for block in self.blocks:
                    x, weights = block.forward_with_weights(x)
                    maps.append(weights)
        finally:
            if training:
                self.train()
        return maps

    def forward_intermediates(self, x, blocks: Iterable[int] | None = None, *, normalise: bool = True) -> list:
        """Tokens after chosen blocks, in one pass that ends with the deepest of them.

        Args:
            x: images [B, in_chans, height, width].
            blocks: numbers from 0, or from -1 backwards; default: all.
            normalise: by the norm after the last block (with fc_norm there is none).

        Returns:
            A tensor [B, prefix + patches, C] for each number, in the order asked; spec.prefix_tokens of the rows are
            class and register tokens, and the others the patches of spec.grid, row by row.

        Raises:
            ConfigError: there is no such block.

        Example:
            >>> middle, last = network.forward_intermediates(images, [5, -1])
        """
        depth = len(self.blocks)
        wanted = list(range(depth)) if blocks is None else list(blocks)
        for number in wanted:
            if not -depth <= number < depth:
                raise ConfigError(f"there is no block {number}: the model has {depth}, 0 to {depth - 1}")
        wanted, tokens = [number % depth for number in wanted], {}
        x = self._embed(x)
        for number in range(max(wanted, default=-1) + 1):
            x = self.blocks[number](x)
            if number in wanted:
                tokens[number] = self.norm(x) if normalise else x
        return [tokens[number] for number in wanted]

    # -- export ---------------------------------------------------------------------------

    @property
    def size_unit(self) -> int:
        """What sides of images are a multiple of where the size is free: a hybrid then pads alike at every size."""
        return reduction(self.spec.resnet_layers)

    @property
    def other_size(self) -> tuple[int, int]:
        """A lower and wider (height, width) than the model's own: positions are resized both ways."""
        patch, (rows, columns) = pair(self.spec.patch_size), self.spec.grid
        rows, columns = max(1, rows - max(1, rows // 4)), columns + max(1, columns // 4)
        return rows * patch[0] * self.size_unit, columns * patch[1] * self.size_unit

    def simplify(self, *, dynamic: bool, for_onnx: bool) -> None:
        """Rewrite the network in place into the form that is exported, see plsc.models.deploy."""
        from plsc.models import deploy

        deploy.simplify(self, dynamic=dynamic, for_onnx=for_onnx)

    # -- parts ----------------------------------------------------------------------------

    def _embed(self, x):
        """Images → tokens with position embedding [B, prefix + patches, C]."""
        spec = self.spec
        x = self.patch_embed(x)
        prefix = []
        if spec.class_token:
            prefix.append(self.cls_token)
        if spec.reg_tokens:
            prefix.append(self.reg_token)
        prefix = [token.astype(x.dtype).expand([x.shape[0], -1, -1]) for token in prefix]
        if spec.no_embed_class:
            x = paddle.concat([*prefix, x + self.pos_embed], axis=1)
        else:
            x = (paddle.concat([*prefix, x], axis=1) if prefix else x) + self.pos_embed
        return self.pos_drop(x)
