"""How images and targets are held in memory, by every reader, loss and metric. Nothing here needs more than NumPy.

| target | type | unknown pixels |
|---|---|---|
| class numbers | uint8 [H, W] | 255 |
| binary maps (saliency, edges) | uint8 [H, W], 0 or 1 | 255 |
| depth, metres | float [H, W] | 0; values that are not finite count as unknown, too |
| normals | float [H, W, 3], unit vectors | the zero vector |
"""

from __future__ import annotations

from numpy.typing import NDArray

IGNORE = 255
"""Of label and binary maps only: 255 metres is a depth."""
Sample = dict[str, NDArray]
"""``image`` uint8 [H, W, 3] and one array per task, all of the image's height and width."""
EDGE_TOLERANCE = 0.0075
"""How far apart matched edge pixels may be for odsF, of the image diagonal: that of BSDS and PASCAL-Context."""
