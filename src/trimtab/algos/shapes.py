"""Shapes as types: what a tensor's dimensions are, visible in every signature.

Legend: B sequences (or single examples), T tokens, G prompts, K answers to each, N rankings, P pairs, D features,
R named rewards. A ``Mask`` is bool, and True means that the element counts. The types are for readers; functions check
shapes themselves.
"""

from typing import Annotated

from torch import Tensor

MaskB = Annotated[Tensor, "[B] bool"]
MaskBT = Annotated[Tensor, "[B, T] bool"]
MaskG = Annotated[Tensor, "[G] bool"]
MaskGK = Annotated[Tensor, "[G, K] bool"]
MaskNK = Annotated[Tensor, "[N, K] bool"]
MaskP = Annotated[Tensor, "[P] bool"]
TensorB = Annotated[Tensor, "[B]"]
TensorBR = Annotated[Tensor, "[B, R]"]
TensorBT = Annotated[Tensor, "[B, T]"]
TensorD = Annotated[Tensor, "[D]"]
TensorGK = Annotated[Tensor, "[G, K]"]
TensorGKR = Annotated[Tensor, "[G, K, R]"]
TensorR = Annotated[Tensor, "[R]"]
TensorN = Annotated[Tensor, "[N]"]
TensorNK = Annotated[Tensor, "[N, K]"]
TensorP = Annotated[Tensor, "[P]"]
TensorP2 = Annotated[Tensor, "[P, 2]"]
TensorPD = Annotated[Tensor, "[P, D]"]
