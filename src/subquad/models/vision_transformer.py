"""Vision Transformers: images as sequences of patches, with any bidirectional mixer.

Axes: B batch, C channels, H and W sides of an image, T tokens, D width, K classes, h and w the grid
of patches. Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", equations 1 to 8;
sequence pooling from Hassani et al. 2021, "Escaping the Big Data Paradigm".
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from subquad.layers.checkpointing import Checkpointing, run
from subquad.models.mixing import MixerChoice
from subquad.models.vit_initial import initialize
from subquad.models.vit_parts import (
    check_images,
    check_options,
    check_other_grid,
    grid_of,
    make_blocks,
    sees_grid,
    sides_of,
)
from subquad.models.vit_positions import (
    Grid,
    Place,
    PositionName,
    make_positions,
    rows_before,
    tables_of,
)
from subquad.models.vit_presets import Style, preset_options
from subquad.models.vit_resample import METHODS, Resampling
from subquad.models.vit_stems import PATCH_SIZES, STEMS, StemName, StemStyle, make_stem
from subquad.ops.checks import check_choice, check_positive

Pooling = Literal["class", "mean", "sequence"]


class VisionTransformer(nn.Module):
    """Classify images; (B, C, H, W) -> (B, K).

    Images of any sides that are multiples of ``patch_size`` are taken: where the grid is not that
    of ``image_size``, tables of positions are resampled on the way, by ``resampling``. But lambda
    layers and relative positions know ``image_size`` alone, and Linformer no more patches.

    Args:
        image_size: side, or height and width, of the images that position tables are made for.
        patch_size: side, in pixels, of what a token stands for; by default 16, or with a stem of
            convolutions the pixels of its last features' sides (4 with "conv").
        in_channels: C.
        num_classes: K.
        d_model: width D.
        num_layers: blocks.
        num_heads: heads of each mixer.
        d_ff: hidden width of the feed-forward networks, by default 4 D.
        mixer: a name in ``MIXERS``, or a factory (d_model, num_heads, *, is_causal, ...); or a
            sequence of these, one for each layer. "lambda" sees the patches on their grid, for
            images of ``image_size`` only; a class token sees and is seen by its content lambda.
        pooling: what the head sees: a learned class token's output, the mean of all tokens, or
            their mean with learned weights ("sequence").
        positions: "none", "learned" (a vector a patch), "learned-2d" (a vector a row and a column,
            D / 2 each), "coordinates" (a linear map of y and x) or "relative" (a vector for each
            offset in the sequence, dotted with the queries of softmax attention; for images of
            ``image_size`` only).
        position_place: where vectors are added: "stem" (once), "layers" (before each block, a
            table each) or "shared" (before each block, one table). "relative" knows "layers" alone
            and takes it by default; the others "stem".
        stem: "patch", "conv" (as many convolutions and maxima as ``patch_size`` has halvings), or
            a residual network: "r-ti" (its first convolution alone), "r26", "r50", or "r50-3" (its
            blocks in three stages).
        stem_style: whose constants the residual network has: "google" or "timm".
        pre_logits: a hidden layer of width D with tanh before the head.
        activation: "gelu" (by erf) or "gelu-tanh".
        norm_eps: added to the variance in all norms of layers.
        dropout: share dropped behind positions, mixers and both maps of feed-forward networks.
        attention_dropout: share of attention weights dropped.
        drop_path: share of residual branches that training drops, rising from 0 to this.
        resampling: "zoom" (Google's code), "bilinear" (timm from .npz files), "bicubic-antialias"
            (timm) or "bicubic" (transformers).
        checkpointing: what the backward pass finds kept: False all, True the inputs of blocks,
            which then run again, "mixers" all but what lies within mixers, which alone run again:
            cheap where their cost is linear.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if an option does not fit.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        patch_size: int | None = None,
        in_channels: int = 3,
        num_classes: int = 1000,
        d_model: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        d_ff: int | None = None,
        mixer: MixerChoice = "softmax",
        pooling: Pooling = "class",
        positions: PositionName = "learned",
        position_place: Place | None = None,
        stem: StemName = "patch",
        stem_style: StemStyle = "google",
        pre_logits: bool = False,
        activation: Literal["gelu", "gelu-tanh"] = "gelu",
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        resampling: Resampling = "zoom",
        checkpointing: Checkpointing = False,
    ) -> None:
        super().__init__()
        sides = sides_of(image_size)
        check_choice("stem", stem, STEMS)
        patch_size = PATCH_SIZES[stem] if patch_size is None else patch_size
        if position_place is None:
            position_place = "layers" if positions == "relative" else "stem"
        self.config: dict[str, Any] = {
            "image_size": image_size if isinstance(image_size, int) else list(sides),
            "patch_size": patch_size, "in_channels": in_channels, "num_classes": num_classes,
            "d_model": d_model, "num_layers": num_layers, "num_heads": num_heads,
            "d_ff": 4 * d_model if d_ff is None else d_ff,
            "mixer": mixer if isinstance(mixer, str) or callable(mixer) else list(mixer),
            "pooling": pooling, "positions": positions, "position_place": position_place,
            "stem": stem, "stem_style": stem_style, "pre_logits": pre_logits,
            "activation": activation, "norm_eps": norm_eps, "dropout": dropout,
            "attention_dropout": attention_dropout, "drop_path": drop_path,
            "resampling": resampling, "checkpointing": checkpointing,
        }  # fmt: skip
        check_options(self.config)
        self.patch_size, self.checkpointing = patch_size, checkpointing
        self.stem = make_stem(stem, in_channels, d_model, patch_size, style=stem_style)
        self.grid = grid_of(sides, patch_size)
        self._add_layers()
        initialize(self)

    def _add_layers(self) -> None:
        """Make all parts behind the stem, as ``config`` has them."""
        config, d_model = self.config, self.config["d_model"]
        has_class = config["pooling"] == "class"
        self.class_token: nn.Parameter | None = None
        if has_class:
            self.class_token = nn.Parameter(torch.zeros(1, 1, d_model))
        self.positions = make_positions(
            config["positions"], self.grid, d_model, has_class=has_class,
            count=config["num_layers"] if config["position_place"] == "layers" else None,
        )  # fmt: skip
        self.dropout = nn.Dropout(config["dropout"])
        self.blocks = nn.ModuleList(make_blocks(config, self.grid))
        self.norm = nn.LayerNorm(d_model, eps=config["norm_eps"])
        self.scores = nn.Linear(d_model, 1) if config["pooling"] == "sequence" else None
        self.pre_logits = nn.Linear(d_model, d_model) if config["pre_logits"] else None
        self.head = nn.Linear(d_model, config["num_classes"])

    @classmethod
    def preset(cls, name: str, style: Style = "google", **changes: Any) -> "VisionTransformer":
        """Build a published network.

        Args:
            name: a size of Ti, S, B, L, H and a patch, "B/16"; or with a residual stem: "R+Ti/16",
                "R26+S/32", "R50+B/16", "R50+L/32" and the like.
            style: whose code it is to agree with: "google" (GELU by tanh), "timm" (by erf) or "hf"
                (by erf, norms with 1e-12 in place of 1e-6).
            changes: options in place of the preset's.

        Raises:
            ValueError: if there is no such preset, or an option does not fit.
        """
        return cls(**{**preset_options(name, style), **changes})

    def embed(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T D"]:
        """Return the tokens that the first block sees, the class token first if there is one.

        Raises:
            TypeError: if ``x`` is not floating.
            ValueError: if a shape does not fit.
        """
        grid = self._grid_of_images("x", x)
        return self._enter(self._tokens(x), [grid])

    def forward_features(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T D"]:
        """Return all tokens after the last norm; raises as ``embed`` does."""
        grid = self._grid_of_images("x", x)
        return self._through(self._tokens(x), [grid])

    def encode(
        self, patches: Float[Tensor, "B N D"], grid: Grid | None = None
    ) -> Float[Tensor, "B T D"]:
        """Return all tokens after the last norm, of patches that the stem has embedded.

        That is ``forward_features`` behind its first step, ``stem(x).flatten(2).mT``: a place to
        change what stands in some patches, before positions are added.

        Args:
            patches: in raster order, without class token and positions.
            grid: patches down and across; None for that of ``image_size``.

        Raises:
            ValueError: if a shape does not fit, or the grid is another where it is built in (with
                relative positions, or lambda layers).
        """
        grid = self.grid if grid is None else grid
        fits = patches.shape[1:] == (grid[0] * grid[1], self.config["d_model"])
        if patches.dim() != 3 or not fits or 0 in patches.shape:
            raise ValueError(
                f"patches must have the shape (B, {grid[0] * grid[1]}, {self.config['d_model']}), "
                f"got {tuple(patches.shape)}"
            )
        check_other_grid(self, "grid", grid)
        return self._through(self._with_class(patches), [grid])

    def pool(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        """Return what the head sees of an image: its class token, or a mean of its tokens."""
        if self.class_token is not None:
            return tokens[:, 0]
        if self.scores is None:
            return tokens.mean(1)
        weights = self.scores(tokens).squeeze(2).softmax(1)
        return torch.einsum("bt,btd->bd", weights.to(tokens.dtype), tokens)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Return the logits of the classes; raises as ``embed`` does."""
        return self._classify(self.pool(self.forward_features(x)))

    def forward_packed(self, images: Sequence[Float[Tensor, "C _ _"]]) -> Float[Tensor, "N K"]:
        """Return the logits of N images of different sizes, which share one packed sequence.

        No image sees another: each has the patches, and the logits, that it has alone. Lambda
        layers know images of one size alone, which are run as the batch that they are.

        Args:
            images: each (C, H, W) with sides of its own.

        Raises:
            TypeError: if an image is not floating.
            ValueError: if there is no image, or a shape does not fit.
        """
        if len(images) == 0:
            raise ValueError("images must hold at least one, got none")
        grids = [
            self._grid_of_images(f"images[{i}]", x, is_batch=False) for i, x in enumerate(images)
        ]
        if sees_grid(self):
            return self.forward(torch.stack(list(images)))
        parts = [self._tokens(x.unsqueeze(0)) for x in images]
        lengths = [part.shape[1] for part in parts]
        borders = torch.tensor([0, *accumulate(lengths)], device=parts[0].device)
        tokens = self._through(torch.cat(parts, dim=1), grids, borders)
        pooled = [self.pool(part) for part in torch.split(tokens, lengths, dim=1)]
        return self._classify(torch.cat(pooled))

    def resample(self, image_size: int | Sequence[int], method: Resampling | None = None) -> None:
        """Make the tables of positions those of another image size, to be kept and trained.

        The tables are new parameters: an optimiser made before does not know them.

        Args:
            image_size: side, or height and width.
            method: how; None for the model's ``resampling``.

        Raises:
            TypeError: if a side is not an int.
            ValueError: if a side or the method does not fit, or if the grid is built in (with
                relative positions, lambda layers or Linformer layers).
        """
        method = self.config["resampling"] if method is None else method
        check_choice("method", method, tuple(METHODS))
        sides = sides_of(image_size)
        grid = grid_of(sides, self.patch_size)
        check_other_grid(self, "image_size", grid, kept=True)
        for table in tables_of(self.positions):
            table.resample(grid, method)
        self.grid = grid
        self.config["image_size"] = image_size if isinstance(image_size, int) else list(sides)

    def reset_head(self, num_classes: int) -> None:
        """Put a linear head of zeros in place of the old one and of ``pre_logits``.

        Raises:
            TypeError: if ``num_classes`` is not an int.
            ValueError: if it is below 1.
        """
        check_positive("num_classes", num_classes)
        old = self.head.weight
        self.head = nn.Linear(old.shape[1], num_classes, device=old.device, dtype=old.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.pre_logits = None
        self.config.update(num_classes=num_classes, pre_logits=False)

    def _tokens(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T D"]:
        """Return the class token, if there is one, and those of the patches."""
        return self._with_class(self.stem(x).flatten(2).mT)

    def _with_class(self, patches: Float[Tensor, "B N D"]) -> Float[Tensor, "B T D"]:
        if self.class_token is None:
            return patches.contiguous()  # a stem's have their channels apart, slow for all layers
        first = self.class_token.to(patches.dtype).expand(len(patches), -1, -1)
        return torch.cat([first, patches], dim=1)

    def _enter(self, tokens: Tensor, grids: list[Grid]) -> Float[Tensor, "B T D"]:
        """Return the tokens as the first block sees them."""
        placed: Tensor = self.dropout(self._placed(0, tokens, grids))
        return placed

    def _placed(self, layer: int, x: Tensor, grids: list[Grid]) -> Float[Tensor, "B T D"]:
        """Return the tokens with the positions that this layer's input gets."""
        place, method = self.config["position_place"], self.config["resampling"]
        rows = rows_before(layer, self.positions, grids, place, method)
        return x if rows is None else x + rows

    def _through(
        self, tokens: Tensor, grids: list[Grid], cu_seqlens: Int[Tensor, " S_plus_1"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Run positions, blocks and the last norm."""
        x = self._enter(tokens, grids)
        for i, block in enumerate(self.blocks):
            x = x if i == 0 else self._placed(i, x, grids)
            x = run(block, x, again=self.checkpointing is True, cu_seqlens=cu_seqlens)
        normed: Tensor = self.norm(x)
        return normed

    def _classify(self, pooled: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        if self.pre_logits is not None:
            pooled = self.pre_logits(pooled).tanh()
        logits: Tensor = self.head(pooled)
        return logits

    def _grid_of_images(self, name: str, x: Tensor, *, is_batch: bool = True) -> Grid:
        """Require images that fit, and return their grid."""
        check_images(name, x, self.config["in_channels"], is_batch=is_batch)
        grid = grid_of(x.shape[-2:], self.patch_size)
        check_other_grid(self, name, grid)
        return grid
