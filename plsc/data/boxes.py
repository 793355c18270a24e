"""Rectangles of a batch on the device."""

import paddle


def inside(boxes, height: int, width: int):
    """Which pixels lie in which box.

    Args:
        boxes: [B, N, 4] integers: top, left, height, width; a box of height or width 0 has no pixels.

    Returns:
        [B, N, height, width] bool.
    """
    top, left, tall, wide = boxes.astype("int32").unsqueeze(-2).unbind(axis=-1)  # each [B, N, 1]
    rows, columns = paddle.arange(height, dtype="int32"), paddle.arange(width, dtype="int32")
    in_rows = (rows >= top) & (rows < top + tall)
    in_columns = (columns >= left) & (columns < left + wide)
    return in_rows.unsqueeze(-1) & in_columns.unsqueeze(-2)
