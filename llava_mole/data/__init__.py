"""From files to samples: sources refuse by file and line, images arrive as RGB or not at all."""

from llava_mole.data.images import load_image
from llava_mole.data.readers import read_llava_json
from llava_mole.data.sample import IMAGE, ImageRef, Sample, Turn
from llava_mole.data.source_index import SourceIndex
from llava_mole.data.sources import Source, SourceSpec, open_source

__all__ = [
    "IMAGE",
    "ImageRef",
    "Sample",
    "Source",
    "SourceIndex",
    "SourceSpec",
    "Turn",
    "load_image",
    "open_source",
    "read_llava_json",
]
