"""Take the screenshots of docs/images/console: `make screenshots`. All programs in them are real."""

import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.support import pki
from tests.support.browsers import log_in, open_context, running_browser
from tests.support.scenes import PASSWORD, STUDIES, Scene, Study, fill, running_scene

TRAFFIC_SECONDS = 150.0
MODES = {
    "light": None,
    "dark": {"overview", "studies", "deliveries"},
    "phone": {"overview", "studies", "study", "deliveries"},
}
"""Pages of each mode; None for all."""

FREQUENT = 128
"""Colours of a palette that are the most frequent ones of the picture."""

HEIGHTS = {"light": 2000, "dark": 2000, "phone": 1500}
"""Pixels of CSS; some pages are longer than a picture in a document should be."""


def main(target: Path) -> None:
    """Run the scene, let images arrive for a while, and take all pictures."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="screenshots") as name:
        folder = Path(name)
        (folder / "pki").mkdir()
        material = pki.make(folder / "pki")
        with running_scene(folder, material) as scene:
            fill(scene)
            stop = threading.Event()
            traffic = threading.Thread(target=_send, args=(scene, stop))
            traffic.start()
            try:
                time.sleep(TRAFFIC_SECONDS)
                _take_all(scene, target)
            finally:
                stop.set()
                traffic.join()


def _send(scene: Scene, stop: threading.Event) -> None:
    """Send small studies of changing size from all scanners, until told to stop."""
    chance, number = random.Random(7), 900
    while not stop.is_set():
        modality, sender = chance.choice((("CT", "CT1"), ("MR", "MR2"), ("US", "US3"), ("DX", "DX4")))
        number += 1
        study = Study(
            number,
            modality,
            "Nowak^Anna",
            "P-771204",
            f"{modality} follow-up",
            ("Series",),
            chance.randint(1, 9),
        )
        scene.send(study.write(scene.folder / "traffic"), sender)
        stop.wait(chance.random() * 3)


def _take_all(scene: Scene, target: Path) -> None:
    with running_browser() as browser:
        for mode, wanted in MODES.items():
            context = open_context(browser, phone=mode == "phone", dark=mode == "dark")
            page = context.new_page()
            if mode == "light":
                page.goto(f"{scene.url}/login")
                _take(page.screenshot, target / "login-light.png")
            log_in(page, scene.url, "admin", PASSWORD)
            for name, path in _list_pages(scene).items():
                if wanted is not None and name not in wanted:
                    continue
                page.goto(scene.url + path)
                page.wait_for_selector("[data-live-state][data-state=on]", state="attached")
                page.wait_for_timeout(2500)  # for rates and charts
                height = int(page.evaluate("document.documentElement.scrollHeight"))
                clip = {"x": 0, "y": 0, "width": page.viewport_size["width"], "height": height}
                clip["height"] = min(height, HEIGHTS[mode])
                _take(page.screenshot, target / f"{name}-{mode}.png", full_page=True, clip=clip)
            context.close()


def _list_pages(scene: Scene) -> dict[str, str]:
    rows = scene.node.query("SELECT id, state FROM instances WHERE study_uid = ? ORDER BY id", STUDIES[0].uid)
    stored = next(number for number, state in rows if state == "stored")
    quarantined = next(number for number, state in rows if state == "quarantined")
    return {
        "overview": "/",
        "studies": "/studies",
        "study": f"/studies/{STUDIES[0].uid}",
        "instance": f"/instances/{stored}",
        "deliveries": "/deliveries",
        "quarantine": f"/quarantine/{quarantined}",
        "peers": "/peers",
        "routes": "/routes",
        "configuration": "/configuration",
    }


def _take(screenshot: Callable[..., bytes], path: Path, **options: object) -> None:
    """Write a picture with a palette, which is a third of its size."""
    screenshot(path=str(path), **options)
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        if small.width == 780:
            small = small.resize((small.width * 2 // 3, small.height * 2 // 3), Image.Resampling.LANCZOS)
        small.quantize(palette=_choose_palette(small), dither=Image.Dither.NONE).save(path, optimize=True)


def _choose_palette(picture: Image.Image) -> Image.Image:
    """Return 256 colours: the most frequent ones as they are, and others that are far from each other.

    With frequent colours alone, small marks would lose theirs, such as green. Without them, areas get a tint.
    """
    found = sorted(picture.getcolors(1 << 24) or [], key=lambda each: -each[0])
    frequent = [part for _, color in found[:FREQUENT] if isinstance(color, tuple) for part in color]
    spread = picture.quantize(256 - FREQUENT, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette = Image.new("P", (1, 1))
    palette.putpalette([*frequent, *(spread.getpalette() or [])][: 3 * 256])
    return palette


if __name__ == "__main__":
    main(Path(sys.argv[1]))
