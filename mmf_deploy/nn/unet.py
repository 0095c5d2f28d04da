"""The UNet of the public MeanFlow CIFAR-10 model (DDPM++ as in EDM), with labels and guidance.

Parameter names and arithmetic follow the public checkpoints, so their weights load
unchanged. Sizes are a matter of configuration: 0.2M parameters for digits, 55.9M for
CIFAR-10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmf_deploy.errors import ConfigError
from mmf_deploy.nn.config import UNetConfig
from mmf_deploy.nn.dropout import Dropout
from mmf_deploy.nn.embedding import Conditioning
from mmf_deploy.spec import SampleSpec

_FILTER = torch.tensor([1.0, 3.0, 3.0, 1.0])


class Conv2d(nn.Module):
    """Convolution with optional 2× resampling before it by the filter [1, 3, 3, 1]."""

    resample_filter: Tensor

    def __init__(
        self, cin: int, cout: int, kernel: int, *, up: bool = False, down: bool = False
    ) -> None:
        super().__init__()
        self.up, self.down, self.padding = up, down, kernel // 2
        self.weight = nn.Parameter(torch.empty(cout, cin, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(cout))
        nn.init.xavier_uniform_(self.weight)
        if up or down:
            outer = torch.outer(_FILTER, _FILTER)
            self.register_buffer("resample_filter", (outer / outer.sum())[None, None])

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Resample and convolve; ``shift`` as in ``convolve``."""
        return self.convolve(self.resample(x), shift)

    def resample(self, x: Tensor) -> Tensor:
        """[B, cin, H, W] to twice or half the height and width, or as it is."""
        channels = x.shape[1]
        if self.up:
            depthwise = (self.resample_filter * 4).repeat(channels, 1, 1, 1)
            x = F.conv_transpose2d(x, depthwise, groups=channels, stride=2, padding=1)
        if self.down:
            depthwise = self.resample_filter.repeat(channels, 1, 1, 1)
            x = F.conv2d(x, depthwise, groups=channels, stride=2, padding=1)
        return x

    def convolve(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """The convolution; shift [1 or B, cout] is added to every pixel of the output."""
        if shift is not None and shift.shape[0] == 1 and not self.training:
            # the same for the whole batch: it is part of the bias
            return F.conv2d(x, self.weight, self.bias + shift[0], padding=self.padding)
        x = F.conv2d(x, self.weight, self.bias, padding=self.padding)
        return x if shift is None else x + shift[:, :, None, None]


def group_norm(channels: int) -> nn.GroupNorm:
    """min(32, C/4) groups, fewer where that does not divide C; eps 1e-6."""
    groups = math.gcd(max(1, min(32, channels // 4)), channels)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class UNetBlock(nn.Module):
    """Residual block with a shift by the embedding, resampling and single-head attention."""

    def __init__(
        self,
        cin: int,
        cout: int,
        embedding: int,
        config: UNetConfig,
        *,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = Dropout(config.dropout)
        self.norm0 = group_norm(cin)
        self.conv0 = Conv2d(cin, cout, 3, up=up, down=down)
        self.affine = nn.Linear(embedding, cout)
        self.norm1 = group_norm(cout)
        self.conv1 = Conv2d(cout, cout, 3)
        self.skip = Conv2d(cin, cout, 1, up=up, down=down) if cin != cout or up or down else None
        self.attention = attention
        if attention:
            self.norm2 = group_norm(cout)
            self.qkv = Conv2d(cout, 3 * cout, 1)
            self.proj = Conv2d(cout, cout, 1)
        self._initialise(config.zero_init)

    def _initialise(self, zero_init: float) -> None:
        nn.init.xavier_uniform_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)
        with torch.no_grad():
            self.conv1.weight.mul_(zero_init)
            if self.attention:
                self.qkv.weight.mul_(math.sqrt(0.2))
                self.proj.weight.mul_(zero_init)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """Args: x: [B, cin, H, W]; shift: ``affine`` of the embedding, [1 or B, cout]."""
        y = self.conv0(F.silu(self.norm0(x)), shift)
        y = self.conv1(self.dropout(F.silu(self.norm1(y))))
        skip: Tensor = x if self.skip is None else self.skip(x)
        x = (y + skip) * math.sqrt(0.5)
        if self.attention:
            attended: Tensor = self.proj(self._attend(x))
            x = (x + attended) * math.sqrt(0.5)
        return x

    def _attend(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        qkv: Tensor = self.qkv(self.norm2(x))
        q, k, v = qkv.flatten(2).chunk(3, dim=1)
        # written out: fused attention has no forward-mode derivative
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(channels), dim=2)
        return torch.bmm(v, weights.transpose(1, 2)).reshape(x.shape)


class UNet(Conditioning):
    """Average velocity u(x, r, t) of images.

    Raises:
        ConfigError: the image does not fit the number of levels.
    """

    def __init__(self, spec: SampleSpec, config: UNetConfig) -> None:
        _, height, width = spec.shape
        levels = len(config.channel_mult)
        if height != width or height % 2 ** (levels - 1):
            raise ConfigError(
                f"network.channel_mult has {levels} levels, so images must be square with a side "
                f"divisible by {2 ** (levels - 1)}; this data is {height}×{width}"
            )
        base = config.model_channels
        super().__init__(spec, 4 * base, config.augment_dim)
        embedding = 4 * base
        self.map_layer0 = nn.Linear(4 * base, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        skips = self._build_encoder(spec, config, embedding)
        self._build_decoder(spec, config, embedding, skips)
        self._initialise(config.zero_init)

    def _build_encoder(self, spec: SampleSpec, config: UNetConfig, embedding: int) -> list[int]:
        self.enc = nn.ModuleDict()
        skips = []
        cout = spec.shape[0]
        for level, mult in enumerate(config.channel_mult):
            side = spec.shape[1] >> level
            if level == 0:
                cin, cout = cout, config.model_channels
                self.enc[f"{side}x{side}_conv"] = Conv2d(cin, cout, 3)
            else:
                self.enc[f"{side}x{side}_down"] = UNetBlock(
                    cout, cout, embedding, config, down=True
                )
            skips.append(cout)
            for k in range(config.num_blocks):
                cin, cout = cout, mult * config.model_channels
                attention = side in config.attn_resolutions
                self.enc[f"{side}x{side}_block{k}"] = UNetBlock(
                    cin, cout, embedding, config, attention=attention
                )
                skips.append(cout)
        return skips

    def _build_decoder(
        self, spec: SampleSpec, config: UNetConfig, embedding: int, skips: list[int]
    ) -> None:
        self.dec = nn.ModuleDict()
        cout = skips[-1]
        side = spec.shape[1]
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            side = spec.shape[1] >> level
            name = f"{side}x{side}"
            if level == len(config.channel_mult) - 1:
                self.dec[f"{name}_in0"] = UNetBlock(cout, cout, embedding, config, attention=True)
                self.dec[f"{name}_in1"] = UNetBlock(cout, cout, embedding, config)
            else:
                self.dec[f"{name}_up"] = UNetBlock(cout, cout, embedding, config, up=True)
            for k in range(config.num_blocks + 1):
                cin, cout = cout + skips.pop(), mult * config.model_channels
                attention = k == config.num_blocks and side in config.attn_resolutions
                self.dec[f"{name}_block{k}"] = UNetBlock(
                    cin, cout, embedding, config, attention=attention
                )
        self.dec[f"{side}x{side}_aux_norm"] = group_norm(cout)
        self.dec[f"{side}x{side}_aux_conv"] = Conv2d(cout, spec.shape[0], 3)

    def _initialise(self, zero_init: float) -> None:
        for layer in (self.map_layer0, self.map_layer1):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        output = list(self.dec.values())[-1]
        with torch.no_grad():
            output.weight.mul_(zero_init)  # type: ignore[operator]

    def forward(
        self,
        x: Tensor,
        r: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """u(x, r, t).

        Args:
            x: float32 [B, C, H, W].
            r, t: float32 [B] or [1], 0 <= r <= t <= 1.
            label: int64 [B]; the null label if not given.
            guidance: float32 [B]; 1 if not given.
            augment: float32 [B, augment_dim].
        Returns:
            float32 [B, C, H, W].
        """
        e = self.embed(self.condition(r, t, label, guidance, augment))
        return self.body(x, [layer(e) for layer in self.shift_layers()])

    def embed(self, condition: Tensor) -> Tensor:
        """The embedding after its linear layers, [B, 4 · model_channels]."""
        return F.silu(self.map_layer1(F.silu(self.map_layer0(condition))))

    def shift_layers(self) -> list[nn.Linear]:
        """What turns the embedding into each block's shift, in the order of ``body``."""
        blocks = [*self.enc.values(), *self.dec.values()]
        return [block.affine for block in blocks if isinstance(block, UNetBlock)]

    def body(self, x: Tensor, shifts: Sequence[Tensor]) -> Tensor:
        """The network behind its embedding: float32 [B, C, H, W] to the same.

        Args:
            shifts: one [1 or B, channels] a block.
        """
        shift = iter(shifts)
        skips = []
        for block in self.enc.values():
            x = block(x, next(shift)) if isinstance(block, UNetBlock) else block(x)
            skips.append(x)
        for name, block in self.dec.items():
            if isinstance(block, UNetBlock):
                x = torch.cat([x, skips.pop()], dim=1) if "_block" in name else x
                x = block(x, next(shift))
            elif isinstance(block, nn.GroupNorm):
                x = F.silu(block(x))
            else:
                x = block(x)
        return x
