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
from plsc.models.init import init_head, init_weights, linear
from plsc.models.layers import (
    Attention,
    AttentionPool,
    Block,
    Dropout,
    DropPath,
    FeatureNorm,
    LayerScale,
    Mlp,
    PatchEmbed,
    QuickGelu,
    RelativePositionBias,
    RMSNorm,
    Rotary,
    SwiGlu,
    norm_layer,
)
from plsc.models.resnet import HybridEmbed
from plsc.models.spec import ViTSpec, pair, reduction

# parts of a block and its attention, none of which lets a token depend on another one
_PARTS = {
    *(Rotary, RelativePositionBias, Mlp, SwiGlu, LayerScale, Dropout, DropPath, RMSNorm, QuickGelu),
    *(nn.Linear, nn.LayerNorm, nn.GELU, nn.Identity),
}


def _by_token(layer: nn.Layer) -> bool:
    """Whether what a layer makes of a token depends on that token alone."""
    return type(layer) in _PARTS and not (isinstance(layer, nn.LayerNorm) and len(layer._normalized_shape) > 1)


def sincos_position_embedding(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed sine-cosine embedding [rows × columns, width] of "Better plain ViT baselines" (Beyer et al., 2022)."""
    y, x = np.mgrid[: grid[0], : grid[1]]
    frequency = 1.0 / 10000.0 ** (np.arange(width // 4) / (width // 4 - 1 or 1))
    y, x = (axis.reshape(-1, 1) * frequency for axis in (y, x))
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype("float32")


class VisionTransformer(nn.Layer):
    """Images [B, in_chans, height, width] float32 → logits [B, class_num].

    It offers all that plsc.models.base describes.

    Attributes:
        last_rows: how many tokens the last block makes in `forward`; None: all, see `skip_unread`.
    """

    last_rows: int | None = None

    def __init__(self, spec: ViTSpec):
        super().__init__()
        self.spec = spec
        width = spec.embed_dim
        self.patch_embed: nn.Layer
        if spec.resnet_layers is None:
            self.patch_embed = PatchEmbed(spec.img_size, spec.patch_size, spec.in_chans, width, spec.patch_bias)
        else:
            self.patch_embed = HybridEmbed(spec)
        if spec.class_token:
            self.cls_token = self.create_parameter([1, 1, width])
        if spec.distillation:
            self.dist_token = self.create_parameter([1, 1, width])
        if spec.reg_tokens:
            self.reg_token = self.create_parameter([1, spec.reg_tokens, width])
        if spec.pos_embed != "none":
            rows = spec.grid[0] * spec.grid[1] + spec.embedded_prefix
            self.pos_embed = self.create_parameter([1, rows, width])
        if spec.pos_embed == "sincos2d":
            table = sincos_position_embedding(spec.grid, width)
            prefix = np.zeros([spec.embedded_prefix, width], "float32")
            self.pos_embed.set_value(np.concatenate([prefix, table])[None])
            self.pos_embed.stop_gradient = True
        self.pos_drop = Dropout(spec.drop_rate)
        self.norm_pre = norm_layer(spec.norm, width, spec.epsilon) if spec.norm_pre else nn.Identity()
        rates = np.linspace(spec.drop_path_rate if spec.drop_path_uniform else 0.0, spec.drop_path_rate, spec.depth)
        self.blocks = nn.LayerList(Block(spec, rate) for rate in rates.tolist())
        final = spec.final_norm and not spec.fc_norm
        self.norm = norm_layer(spec.norm, width, spec.epsilon) if final else nn.Identity()
        if spec.pool == "map":
            self.attn_pool = AttentionPool(spec)
        if spec.fc_norm:
            self.fc_norm = norm_layer(spec.norm, width, spec.epsilon)
        if spec.representation_size:
            self.head0 = linear(spec.pooled_width, spec.representation_size)
        init_weights(self, spec.weight_init)
        self.reset_classifier(spec.class_num)

    # -- the model protocol ---------------------------------------------------------------

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if self.last_rows is None:
            return self.forward_head(self.forward_features(x))
        x = self._embed(x)
        for block in list(self.blocks)[:-1]:
            x = block(x)
        return self.forward_head(self.norm(self.blocks[-1](x, self.last_rows)))

    def forward_features(self, x: paddle.Tensor) -> paddle.Tensor:
        """Images → normalised tokens [B, prefix + patches, C]."""
        x = self._embed(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def skip_unread(self) -> None:
        """Let `forward` have the last block make only the tokens that the head reads.

        The logits and all gradients stay as they are, to rounding: what a block makes of a token reaches others in the
        next block only. A model with a class token does without nearly all of its last block's work. All tokens are
        made where they may have other readers: layers of somebody else's in the last block or after it, other forwards,
        and hooks that are there by now.
        """
        last = self.blocks[-1] if len(self.blocks) else None
        if type(self) is not VisionTransformer or type(last) is not Block or type(last.attn) is not Attention:
            return
        parts = [layer for layer in last.sublayers() if layer is not last.attn] + [self.norm]
        layers = [last, last.attn, *parts]
        hooked = any(layer._forward_pre_hooks or layer._forward_post_hooks for layer in layers)
        replaced = any(name.startswith("forward") for layer in (self, *layers) for name in vars(layer))
        if all(map(_by_token, parts)) and not hooked and not replaced:
            self.last_rows = self.spec.read_tokens

    def forward_head(self, x: paddle.Tensor, pre_logits: bool = False) -> paddle.Tensor:
        """Tokens → logits [B, class_num], or with pre_logits the features before the head.

        With a distillation token and its head both are the mean of the two, in training as in evaluation.
        """
        spec = self.spec
        if spec.distillation == "heads":
            x, distilled = x[:, 0], x[:, 1]
            return (x + distilled) / 2 if pre_logits else (self.head(x) + self.head_dist(distilled)) / 2
        if spec.pool == "token":
            x = x[:, 0]
        elif spec.pool == "avg":
            x = x[:, spec.prefix_tokens :].mean(axis=1)
        elif spec.pool == "all":
            x = x.mean(axis=1)
        elif spec.pool == "token_avg":
            x = paddle.concat([x[:, 0], x[:, spec.prefix_tokens :].mean(axis=1)], axis=-1)
        else:
            x = self.attn_pool(self._pooled(x))
        if spec.fc_norm:
            x = self.fc_norm(x)
        if spec.representation_size:
            x = paddle.tanh(self.head0(x))
        if pre_logits:
            return x
        return self.head(self.head_norm(x) if spec.head_batch_norm else x)

    def reset_classifier(self, class_num: int) -> None:
        """A new head for `class_num` classes, drawn as the spec says; 0 leaves it out."""
        spec = self.spec = dataclasses.replace(self.spec, class_num=class_num)
        if spec.head_batch_norm:
            width = spec.representation_size or spec.pooled_width
            self.head_norm = FeatureNorm(width)
        for name in ("head", "head_dist") if spec.distillation == "heads" else ("head",):
            if class_num == 0:
                setattr(self, name, nn.Identity())
                continue
            head = linear(spec.representation_size or spec.pooled_width, class_num)
            init_head(head, spec.weight_init, spec.head_init, spec.head_bias)
            setattr(self, name, head)

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer-wise lr decay: 0 the embeddings, 1 … depth the blocks, depth + 1 the rest."""
        block = re.match(r"blocks\.(\d+)\.", name)
        if block:
            return int(block.group(1)) + 1
        embeddings = ("patch_embed.", "cls_token", "dist_token", "reg_token", "pos_embed", "norm_pre.")
        return 0 if name.startswith(embeddings) else self.spec.depth + 1

    def no_weight_decay(self) -> set[str]:
        """Parameters that recipes without decay on embeddings leave out."""
        endings = ("cls_token", "dist_token", "reg_token", "pos_embed", "attn_pool.latent", "rope.freqs", "bias.table")
        return {name for name, _ in self.named_parameters() if name.endswith(endings)}

    def attention_maps(self, x: paddle.Tensor) -> list[paddle.Tensor]:
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

    def pool_weights(self, x: paddle.Tensor) -> paddle.Tensor:
        """Tokens of a model with pool map → how its query weighs them [B, H, N]; 0 for those that it does not see."""
        weights = self.attn_pool.attention_map(self._pooled(x))
        unseen = x.shape[1] - weights.shape[2]
        return paddle.concat([paddle.zeros([*weights.shape[:2], unseen]), weights], axis=2) if unseen else weights

    def forward_intermediates(
        self, x: paddle.Tensor, blocks: Iterable[int] | None = None, *, normalise: bool = True
    ) -> list[paddle.Tensor]:
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

    def _embed(self, x: paddle.Tensor) -> paddle.Tensor:
        """Images → tokens with position embedding [B, prefix + patches, C]."""
        spec = self.spec
        x = self.patch_embed(x)
        prefix = []
        if spec.class_token:
            prefix.append(self.cls_token)
        if spec.distillation:
            prefix.append(self.dist_token)
        if spec.reg_tokens:
            prefix.append(self.reg_token)
        prefix = [token.astype(x.dtype).expand([x.shape[0], -1, -1]) for token in prefix]
        if spec.no_embed_class and spec.pos_embed != "none":
            x = x + self.pos_embed
        x = paddle.concat([*prefix, x], axis=1) if prefix else x
        if not spec.no_embed_class and spec.pos_embed != "none":
            x = x + self.pos_embed
        return self.norm_pre(self.pos_drop(x))

    def _pooled(self, x: paddle.Tensor) -> paddle.Tensor:
        """The tokens that attention pooling sees."""
        prefix = 0 if self.spec.pool_prefix else self.spec.prefix_tokens
        return x[:, prefix:] if prefix else x
