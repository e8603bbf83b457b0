"""Products with the model's matrices in float32, for which a bfloat16 or float16 matrix never stands in float32 whole."""

from __future__ import annotations

import torch
from torch import Tensor

VALUES = 2**22  # of a matrix that are widened at a time: 16 MiB in float32


def product(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Dot products of vectors with the rows of a matrix.

    Args:
        vectors: `[n, d]`.
        matrix: `[rows, d]`, such as W_out or W_U, in any floating type.

    Returns:
        `[n, rows]` in float32, on the matrix's device; the sums, too, are taken in float32.

    Example:
        >>> product(torch.eye(2), torch.tensor([[1, 2], [3, 4]], dtype=torch.bfloat16))
        tensor([[1., 3.],
                [2., 4.]])
    """
    vectors = vectors.to(matrix.device).float()
    if matrix.dtype == torch.float32:
        return vectors @ matrix.T
    out = vectors.new_empty(len(vectors), len(matrix))
    step = max(1, VALUES // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), step):
        torch.mm(vectors, matrix[start : start + step].float().T, out=out[:, start : start + step])
    return out
