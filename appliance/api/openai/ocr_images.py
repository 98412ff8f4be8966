"""The images of a read document: as many and as large as the request allows, whether or not the server kept to it."""

from __future__ import annotations

import msgspec

from appliance.gateway.upstream.client import Fields


class _Corners(msgspec.Struct):
    """Where an image is on its page, in pixels."""

    top_left_x: float | None = None
    top_left_y: float | None = None
    bottom_right_x: float | None = None
    bottom_right_y: float | None = None

    def smaller_than(self, least: int) -> bool:
        """Tell whether the width or the height is less; an image of unknown size is not smaller."""
        sides = (
            (self.top_left_x, self.bottom_right_x),
            (self.top_left_y, self.bottom_right_y),
        )
        return any(start is not None and end is not None and abs(end - start) < least for start, end in sides)


def limited_images(pages: msgspec.Raw, most: int | None, least: int | None) -> msgspec.Raw:
    """Return pages with at most ``most`` images in all, none of them smaller than ``least`` pixels; None is no limit.

    Raises msgspec.DecodeError for pages or images that are none.
    """
    if most is None and least is None:
        return pages
    found = msgspec.json.decode(pages, type=list[Fields])
    left = most
    for page in found:
        images = msgspec.json.decode(page.get("images", b"null"), type=list[msgspec.Raw] | None)
        if images is None:
            continue
        if least is not None:
            images = [
                image for image in images if not msgspec.json.decode(image, type=_Corners).smaller_than(least)
            ]
        if left is not None:
            images = images[: max(0, left)]
            left -= len(images)
        page["images"] = msgspec.Raw(msgspec.json.encode(images))
    return msgspec.Raw(msgspec.json.encode(found))
