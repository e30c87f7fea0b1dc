"""From files to samples: readers refuse by file and line, images arrive as RGB or not at all."""

from llava_mole.data.images import load_image
from llava_mole.data.readers import read_llava_json
from llava_mole.data.sample import IMAGE, Sample, Turn

__all__ = ["IMAGE", "Sample", "Turn", "load_image", "read_llava_json"]
