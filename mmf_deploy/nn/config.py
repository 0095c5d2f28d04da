"""Network configurations, as a person writes them under ``network:`` in a recipe. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class UNetConfig(BaseModel):
    """The UNet of the public MeanFlow CIFAR-10 model (DDPM++ as in EDM), any size.

    Attributes:
        model_channels: base width C.
        channel_mult: width of each resolution level as a multiple of C; each level halves.
        num_blocks: residual blocks a level.
        attn_resolutions: resolutions (pixels) whose blocks have attention.
        dropout: probability, inside each block.
        augment_dim: number of augmentation labels, 0 for none.
        zero_init: scale of the initial weights of each block's last convolution and of the
            output; 1e-5 for training, 1 for a random network whose output is not all zero.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["unet"] = "unet"
    model_channels: int = Field(128, ge=4, multiple_of=4)
    channel_mult: tuple[Annotated[int, Field(ge=1)], ...] = Field((2, 2, 2), min_length=1)
    num_blocks: int = Field(4, ge=1)
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    augment_dim: int = Field(0, ge=0)
    zero_init: float = Field(1e-5, ge=0.0)


class MLPConfig(BaseModel):
    """A residual multi-layer perceptron for vectors.

    Attributes:
        width: hidden width.
        depth: residual layers.
        zero_init: scale of the initial output weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["mlp"] = "mlp"
    width: int = Field(128, ge=8, multiple_of=2)
    depth: int = Field(4, ge=1)
    zero_init: float = Field(1e-5, ge=0.0)


NetworkConfig = Annotated[UNetConfig | MLPConfig, Field(discriminator="type")]
