"""From pictures and prompts to the inputs of mPLUG-Owl2, as the original code makes them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal, get_args

from PIL import Image
from transformers import AutoTokenizer, BatchFeature, CLIPImageProcessorPil, ProcessorMixin
from transformers.image_utils import make_flat_list_of_images
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from mmedit.errors import ModelError, RequestError
from mmedit.models.images import load_image
from mmedit.models.mplug_owl2.config import IMAGE_TOKEN_INDEX, MPLUGOwl2Config

IMAGE_TOKEN = "<|image|>"
CHAT_TEMPLATE = (  # the original's `mplug_owl2`: turns and no system text
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('mPLUG-Owl2 takes no system text') }}{% endif %}"
    "{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<|image|>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ ' ' if message['role'] == 'user' else '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

AspectRatio = Literal["resize", "pad", "crop"]
"""What becomes of a picture that is not square: it is stretched to a square, as the model's authors recommend and evaluate;
it is set on a square of the mean colour, as their `cli.py` does; or it is cropped at the centre, as Pan et al. do."""


def square(image: Image.Image, how: AspectRatio, mean: Sequence[float]) -> Image.Image:
    """A picture as it is handed to CLIP's preprocessing, which scales the shorter edge and crops.

    Args:
        image: in RGB.
        how: see `AspectRatio`.
        mean: the mean colour, each of three from 0 to 1.

    Example:
        >>> wide = Image.new("RGB", (6, 4))
        >>> [square(wide, how, (0.5, 0.5, 0.5)).size for how in ("resize", "pad", "crop")]
        [(6, 6), (6, 6), (6, 4)]
    """
    edge = max(image.size)
    if how == "crop" or image.width == image.height:
        return image
    if how == "resize":
        return image.resize((edge, edge))
    red, green, blue = (int(value * 255) for value in mean)
    canvas = Image.new("RGB", (edge, edge), (red, green, blue))
    canvas.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    return canvas


class MPLUGOwl2Processor(ProcessorMixin):  # type: ignore[misc]
    """CLIP's image processor, a Llama tokenizer, and places for image tokens in the text.

    Args:
        image_processor: of CLIP.
        tokenizer: of Llama; `<|image|>` needs no entry in its vocabulary.
        image_aspect_ratio: what becomes of a picture that is not square; see `AspectRatio`.
        num_image_tokens: per picture.
        chat_template: the published conversation when None.

    Raises:
        ModelError: if `image_aspect_ratio` is none of the three.
    """

    image_token = IMAGE_TOKEN
    image_token_id = IMAGE_TOKEN_INDEX

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, image_aspect_ratio: AspectRatio = "resize",
        num_image_tokens: int = MPLUGOwl2Config().image_seq_length, chat_template: str | None = None,
    ) -> None:  # fmt: skip
        if image_aspect_ratio not in get_args(AspectRatio):
            raise ModelError(
                "no such way to make a picture square", where="image_aspect_ratio", got=repr(image_aspect_ratio),
                expected=", ".join(get_args(AspectRatio)),
            )  # fmt: skip
        self.image_aspect_ratio, self.num_image_tokens = image_aspect_ratio, num_image_tokens
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """The parts of a checkpoint, which need not name them. Pillow scales pictures, as in the original code; torchvision differs.

        Raises:
            ModelError: if reading `tokenizer.model` needs packages that are not installed.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (ImportError, ValueError) as error:
            if is_sentencepiece_available() and is_protobuf_available():
                raise
            raise ModelError(
                "reading this tokenizer needs sentencepiece and protobuf", where=pretrained_model_name_or_path,
                do="pip install 'mmedit-vlm[sentencepiece]'",
            ) from error  # fmt: skip
        return [CLIPImageProcessorPil.from_pretrained(pretrained_model_name_or_path, **kwargs), tokenizer]

    def input_ids(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Tokens of a prompt, with one id -200 for each `<|image|>`, exactly as the original code has them.

        What stands between images is tokenized by itself. So a Llama tokenizer puts its `▁` in front of the text that follows
        an image; and where the prompt begins with an image, the start token stands after it.
        """

        def tokenize(chunk: str, special: bool) -> list[int]:
            return self.tokenizer(chunk, add_special_tokens=special).input_ids if chunk else []

        first, *others = text.split(IMAGE_TOKEN)
        before = tokenize(first, add_special_tokens)
        start_awaited = add_special_tokens and before[:1] != [self.tokenizer.bos_token_id]
        return [*before, *chain.from_iterable([IMAGE_TOKEN_INDEX, *tokenize(chunk, start_awaited)] for chunk in others)]

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, videos: None = None, audio: None = None, *,
        return_tensors: str | None = None, padding: bool = False, padding_side: Literal["left", "right"] = "left",
        add_special_tokens: bool = True,
    ) -> BatchFeature:  # fmt: skip
        """Make the model's inputs.

        Args:
            images: pictures, in the order of their places in the texts; whatever `mmedit.models.images.load_image` reads.
            text: one prompt or several, with `<|image|>` for each picture.
            videos: None; as transformers' chat templates pass it.
            audio: None; see videos.
            return_tensors: `pt`, or None for lists.
            padding: make all rows as long as the longest.
            padding_side: where.
            add_special_tokens: whether the tokenizer puts its start token in front.

        Returns:
            `input_ids` with `num_image_tokens` times -200 for each picture, `attention_mask`, and `pixel_values`.

        Raises:
            RequestError: if the texts have more or fewer places than there are pictures, or there is a video or a sound.
            ImageError: if a picture cannot be read.
        """
        if videos is not None or audio is not None:
            raise RequestError("mPLUG-Owl2 takes pictures and text", got="a video or a sound")
        pictures = [] if images is None else list(make_flat_list_of_images(images))
        texts = [text] if isinstance(text, str) else list(text or [])
        places = sum(one.count(IMAGE_TOKEN) for one in texts)
        if texts and places != len(pictures):
            raise RequestError(
                "places for pictures and pictures do not match", got=f"{places} times {IMAGE_TOKEN}, {len(pictures)} pictures",
                expected="one place for each picture",
            )  # fmt: skip
        data: dict[str, Any] = {}
        if texts:
            rows = [self._expanded(self.input_ids(one, add_special_tokens)) for one in texts]
            longest = max(map(len, rows)) if padding else 0

            def padded(row: list[int], fill: int) -> list[int]:
                gap = [fill] * (longest - len(row))
                return gap + row if padding_side == "left" else row + gap

            data["input_ids"] = [padded(row, self.tokenizer.pad_token_id) for row in rows]
            data["attention_mask"] = [padded([1] * len(row), 0) for row in rows]
        if pictures:
            mean = self.image_processor.image_mean
            squares = [square(load_image(picture), self.image_aspect_ratio, mean) for picture in pictures]
            data["pixel_values"] = self.image_processor(squares, return_tensors=return_tensors)["pixel_values"]
        return BatchFeature(data, tensor_type=return_tensors)

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        """The text of tokens; image tokens have none."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        text: str = self.tokenizer.decode([token for token in ids if token != IMAGE_TOKEN_INDEX], **kwargs)
        return text

    def batch_decode(self, sequences: Any, **kwargs: Any) -> list[str]:
        """The text of each row of tokens."""
        return [self.decode(row, **kwargs) for row in sequences]

    def _expanded(self, ids: list[int]) -> list[int]:
        counts = (self.num_image_tokens if token == IMAGE_TOKEN_INDEX else 1 for token in ids)
        return [token for token, count in zip(ids, counts, strict=True) for _ in range(count)]
