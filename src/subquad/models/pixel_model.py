"""Images as sequences of bytes: a causal transformer with a mixture-of-logistics head.

Bytes run row-major, colours innermost. Byte t + 1 is predicted of bytes 0 .. t, so L - 1 bytes of
an image are predicted and bits/dim is the mean over these; a histogram gives the first byte.
Source: Katharopoulos et al. 2020, section 4.2 and the released experiments.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from subquad.layers.frozen import Map, frozen
from subquad.layers.positions import inverse_wavelengths
from subquad.models.decoder import TransformerDecoder
from subquad.models.drawing import draw_seeds, draw_uniforms, progress_of
from subquad.models.memory import generation_batch
from subquad.models.stack import StackOptions, StackState
from subquad.ops.checks import (
    check_ids,
    check_positive,
    check_positive_number,
    check_rows,
    check_shape,
)
from subquad.ops.feature_maps import no_autocast, widen
from subquad.ops.logistic_mixture import logistic_mixture_log_prob, logistic_mixture_sample

logger = logging.getLogger(__name__)

Bytes = Int[Tensor, "B L"] | UInt8[Tensor, "B L"]
Prefix = Int[Tensor, "B P"] | UInt8[Tensor, "B P"]
Labels = Int[Tensor, " B"] | UInt8[Tensor, " B"]


class PixelModel(nn.Module):
    """Model images of ``seq_len`` bytes; L below.

    Args:
        seq_len: bytes of an image, at least 2: height * width * colours.
        d_model: width D.
        num_mixtures: logistics in the mixture.
        num_classes: classes for conditional generation; None for none. A class is a vector added
            to each token.
        options: those of ``Stack``; positions are "sinusoidal-concat" unless given.

    Raises:
        TypeError: if an option is unknown or a number is not an int.
        ValueError: if an option does not fit.
    """

    first_byte_counts: Tensor

    def __init__(
        self,
        seq_len: int,
        *,
        d_model: int = 256,
        num_mixtures: int = 10,
        num_classes: int | None = None,
        **options: Unpack[StackOptions],
    ) -> None:
        super().__init__()
        check_positive("seq_len", seq_len)
        check_positive("num_mixtures", num_mixtures)
        if seq_len < 2:
            raise ValueError(f"seq_len must be at least 2, got {seq_len}")
        options.setdefault("positions", "sinusoidal-concat")
        options.setdefault("max_len", seq_len)
        self.config: dict[str, Any] = {
            "seq_len": seq_len, "d_model": d_model, "num_mixtures": num_mixtures,
            "num_classes": num_classes, **options,
        }  # fmt: skip
        self.seq_len, self.num_classes = seq_len, num_classes
        self.decoder = TransformerDecoder(d_model, **options)
        self.byte_embedding = nn.Embedding(256, self.decoder.token_width)
        self.class_embedding: nn.Embedding | None = None
        if num_classes is not None:
            check_positive("num_classes", num_classes)
            self.class_embedding = nn.Embedding(num_classes, self.decoder.token_width)
        self.head = nn.Linear(d_model, 3 * num_mixtures)
        self._reset_head(num_mixtures)
        self._reset_embedding()
        self.register_buffer("first_byte_counts", torch.ones(256))

    def _reset_head(self, num_mixtures: int) -> None:
        """Start with narrow logistics spread over all bytes; wide ones cost the first epoch."""
        weights, means, log_scales = self.head.bias.detach().chunk(3)
        # The device is named: once transformers has loaded a model, linspace may no longer hear of
        # torch.device("meta"), for transformers patches it, and torch may remember the patch.
        means.copy_(torch.linspace(-1, 1, num_mixtures, device=means.device))
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            weights.zero_()
            log_scales.fill_(-3.0)

    def _reset_embedding(self) -> None:
        """Start with like vectors for like bytes: waves of the value, as for positions."""
        width = self.decoder.token_width
        angles = torch.arange(256).unsqueeze(1) * inverse_wavelengths(width + width % 2, base=1e4)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]
        with torch.no_grad():
            self.byte_embedding.weight.copy_(waves)

    @classmethod
    def mnist(cls, mixer: str = "linear", **overrides: Any) -> "PixelModel":
        """Build the paper's MNIST model: 8 layers of 256, 6,359,070 parameters."""
        settings: dict[str, Any] = {"num_layers": 8, "num_heads": 8, "d_ff": 1024, "dropout": 0.1}
        return cls(784, d_model=256, mixer=mixer, **{**settings, **overrides})

    @classmethod
    def cifar10(cls, mixer: str = "linear", **overrides: Any) -> "PixelModel":
        """Build the paper's CIFAR-10 model: 16 layers of 256, 12,677,150 parameters."""
        settings: dict[str, Any] = {"num_layers": 16, "num_heads": 8, "d_ff": 1024, "dropout": 0.1}
        return cls(3072, d_model=256, mixer=mixer, **{**settings, **overrides})

    def forward(self, pixels: Bytes, labels: Labels | None = None) -> Float[Tensor, "B L-1 P"]:
        """Return the mixture parameters of bytes 1 .. L - 1, (B, L - 1, 3 * num_mixtures).

        In float32 or wider.

        Args:
            pixels: bytes (B, L), any integer dtype.
            labels: classes (B,), for a class-conditional model and for no other.

        Raises:
            TypeError: if a dtype is not an integer one.
            ValueError: if a shape or a value does not fit.
        """
        self._check(pixels, labels)
        check_rows("pixels", pixels, self.seq_len)
        return self._mixture(self.decoder(self._tokens(pixels[:, :-1], labels)))

    def nll(self, pixels: Bytes, labels: Labels | None = None) -> Float[Tensor, "B L-1"]:
        """Return the negative log-likelihood of bytes 1 .. L - 1 in nats; over ln 2 it is bits."""
        return -logistic_mixture_log_prob(self(pixels, labels), pixels[:, 1:].long())

    def init_state(self, batch_size: int) -> StackState:
        """Return the empty past."""
        return self.decoder.init_state(batch_size)

    @torch.inference_mode()
    def generate(
        self,
        batch_size: int,
        *,
        prefix: Prefix | None = None,
        labels: Labels | None = None,
        temperature: float = 1.0,
        seed: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        max_batch: int | None = None,
    ) -> UInt8[Tensor, "B L"]:
        """Draw images byte by byte, from nothing or from their first bytes.

        Image i depends on ``seed`` and i alone (to rounding), however the batch is split.

        Args:
            batch_size: images to draw.
            prefix: the first bytes of each, (batch_size, P), 1 <= P <= L.
            labels: classes (batch_size,), for a class-conditional model.
            temperature: below 1 for safer, above 1 for wilder draws.
            seed: of the draws; None takes one from torch's global generator.
            progress: called with (bytes done, bytes in all) of the whole batch.
            max_batch: images drawn at once; None for as many as fit in memory. A split is logged.

        Raises:
            TypeError: if a dtype, or the type of an option, does not fit.
            ValueError: if a shape, value or option does not fit, or the model is in training mode.
        """
        self._check_generate(batch_size, prefix, labels, temperature, seed, max_batch)
        seeds = draw_seeds(seed, batch_size)
        size = max_batch or generation_batch(
            self.decoder,
            batch_size,
            seq_len=self.seq_len,
            prefix_len=1 if prefix is None else prefix.shape[1],
        )
        if size < batch_size:
            logger.warning("generating %d images in batches of %d", batch_size, size)
        images = []
        for first in range(0, batch_size, size):
            rows = slice(first, min(first + size, batch_size))
            report = None
            if progress is not None:
                report = progress_of(progress, first, rows.stop - first, batch_size, self.seq_len)
            images.append(
                self._generate(
                    draw_uniforms(seeds[rows], self.seq_len, self.head.weight.device),
                    None if prefix is None else prefix[rows],
                    None if labels is None else labels[rows],
                    temperature,
                    report,
                )
            )
        return torch.cat(images)

    def _generate(
        self,
        uniforms: Float[Tensor, "B L 2"],
        prefix: Tensor | None,
        labels: Tensor | None,
        temperature: float,
        report: Callable[[int], None] | None,
    ) -> UInt8[Tensor, "B L"]:
        images = torch.zeros(uniforms.shape[:2], dtype=torch.long, device=uniforms.device)
        if prefix is None:
            below = self.first_byte_counts.double().cumsum(0)
            drawn = uniforms[:, 0, 0].double() * below[-1]
            images[:, 0] = torch.searchsorted(below, drawn, right=True)
        else:
            images[:, : prefix.shape[1]] = prefix
        start = 1 if prefix is None else prefix.shape[1]
        if report is not None:
            report(start)
        state = self.init_state(len(images))
        hidden, state = self.decoder.prefill(self._tokens(images[:, :start], labels), state)
        hidden = hidden[:, -1]
        # What no step changes is looked up before the loop; see ``layers.frozen``.
        step = self.decoder.stepper(len(images), self.seq_len)
        mixture = self._stepwise_mixture(len(images))
        token = self._stepwise_token(labels)
        columns, draws = images.unbind(1), uniforms.unbind(1)
        for t in range(start, self.seq_len):
            byte = logistic_mixture_sample(mixture(hidden), draws[t], temperature)
            columns[t].copy_(byte)
            if report is not None:
                report(t + 1)
            if t + 1 < self.seq_len:
                hidden, state = step(token(byte), state)
        return images.to(torch.uint8)

    def _stepwise_mixture(self, batch_size: int) -> Map:
        """Return ``_mixture`` for the loop."""
        weight = self.head.weight
        is_wide = weight.dtype in (torch.float32, torch.float64)
        if is_wide and not torch.is_autocast_enabled(weight.device.type):
            return frozen(self.head, batch_size)
        return self._mixture

    def _stepwise_token(self, labels: Tensor | None) -> Map:
        """Return ``_tokens`` of one byte a row for the loop."""
        table = self.byte_embedding.weight
        if self.class_embedding is None or labels is None:
            return lambda byte: table.index_select(0, byte)
        classes = self.class_embedding(labels.int())
        return lambda byte: table.index_select(0, byte) + classes

    def _mixture(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... P"]:
        """Map to mixture parameters, in float32 or wider: bf16 rounds a mean by half a byte."""
        with no_autocast(hidden):
            return F.linear(widen(hidden), widen(self.head.weight), widen(self.head.bias))

    def _tokens(self, pixels: Tensor, labels: Tensor | None) -> Float[Tensor, "B T E"]:
        tokens: Tensor = self.byte_embedding(pixels.int())
        if self.class_embedding is not None and labels is not None:
            tokens = tokens + self.class_embedding(labels.int()).unsqueeze(1)
        return tokens

    def _check(self, pixels: Tensor, labels: Tensor | None) -> None:
        check_rows("pixels", pixels)
        check_ids("pixels", pixels, 256)
        if (labels is None) != (self.num_classes is None):
            raise ValueError(
                f"labels must be given exactly when num_classes is, got "
                f"{'none' if labels is None else 'labels'} with num_classes={self.num_classes}"
            )
        if labels is not None and self.num_classes is not None:
            check_shape("labels", labels, pixels.shape[:1])
            check_ids("labels", labels, self.num_classes)

    def _check_generate(
        self,
        batch_size: int,
        prefix: Tensor | None,
        labels: Tensor | None,
        temperature: float,
        seed: int | None,
        max_batch: int | None,
    ) -> None:
        if self.training:
            raise ValueError(
                "model must be in evaluation mode to generate, call model.eval() first"
            )
        if seed is not None and not isinstance(seed, int):
            raise TypeError(f"seed must be an int or None, got {type(seed).__name__} {seed!r}")
        check_positive("batch_size", batch_size)
        check_positive_number("temperature", temperature)
        if max_batch is not None:
            check_positive("max_batch", max_batch)
        if prefix is None:
            prefix = torch.zeros(batch_size, 1, dtype=torch.long)
        self._check(prefix, labels)
        if len(prefix) != batch_size or prefix.shape[1] > self.seq_len:
            raise ValueError(
                f"prefix must have shape ({batch_size}, P) with P from 1 to {self.seq_len}, "
                f"got {tuple(prefix.shape)}"
            )
