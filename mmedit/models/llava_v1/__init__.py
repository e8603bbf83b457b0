"""LLaVA in the format of its own code (haotian-liu/LLaVA v1.0 to v1.5), as transformers' LLaVA.

Such a checkpoint is a Llama with a projector in it and the name of a CLIP tower. transformers takes its config.json for an
empty one of its own LLaVA, so it is looked for first. Nothing of it is changed but names, one identity matrix where the
projector is a single linear map, and rows of zeros for `<image>`, which has none in the original vocabulary.
"""

from mmedit.models.llava_v1.conversations import conversation as conversation
from mmedit.models.llava_v1.reader import original_config as original_config
from mmedit.models.llava_v1.reader import read as read
from mmedit.models.llava_v1.reader import skeleton_config as skeleton_config
from mmedit.models.llava_v1.weights import name_in_memory as name_in_memory
