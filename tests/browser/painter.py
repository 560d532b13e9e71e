"""What a person does with the page, through its real elements and real input events."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

MOUNTED = "MaskNoise.instances.get('txt2img')"
EDITOR = f"{MOUNTED}.panel.editor"


@dataclass
class Painter:
    """scope: a selector of the part of the page with the canvas. preview: of the figures below it."""

    page: Any
    errors: list[str] = field(default_factory=list)
    scope: str = "body"
    preview: str = "#masknoise_preview"

    @classmethod
    def open_webui(cls, context: Any, address: str) -> "Painter":
        """In the txt2img tab of a WebUI, the extension switched on."""
        painter = cls(context.new_page(), scope="#tab_txt2img", preview="#script_txt2img_masknoise_preview")
        page = painter.page
        page.goto(address)
        page.wait_for_selector(f"{painter.scope} .mn-canvas", state="attached", timeout=120_000)
        page.wait_for_function("typeof inputAccordionChecked === 'function'")
        page.evaluate("inputAccordionChecked('script_txt2img_masknoise_enabled', true)")
        page.wait_for_selector(f"{painter.preview} figure", timeout=60_000)
        page.locator(f"{painter.scope} .mn-canvas").scroll_into_view_if_needed()
        page.on("pageerror", lambda error: painter.errors.append(str(error)))
        return painter

    @classmethod
    def open(cls, context: Any, address: str) -> "Painter":
        painter = cls(context.new_page())
        page = painter.page
        # gradio's pages name a script and fonts elsewhere on the net, which tests do without.
        origin = address.partition("/?")[0]
        page.route(lambda url: _elsewhere(url, origin), lambda route: route.abort())
        page.on("pageerror", lambda error: painter.errors.append(str(error)))
        page.on("console", painter._heard)
        page.goto(address)
        painter.wait_until_mounted()
        return painter

    def _heard(self, message: Any) -> None:
        if message.type == "error" and "net::ERR_FAILED" not in message.text:  # of the requests refused above
            self.errors.append(message.text)

    def wait_until_mounted(self) -> None:
        self.page.wait_for_selector(".mn-canvas", timeout=120_000)
        self.page.wait_for_function(f"{MOUNTED}.panel.editor.width === 128")
        # The layout moves until the first preview stands below the canvas.
        self.page.wait_for_selector(f"{self.preview} figure", timeout=120_000)
        self.page.locator(".mn-canvas").scroll_into_view_if_needed()

    def reload(self) -> None:
        self.page.reload()
        self.wait_until_mounted()

    # --- What is there

    def js(self, code: str) -> Any:
        return self.page.evaluate(code)

    @property
    def painting(self) -> dict:
        return json.loads(self.painting_text)

    @property
    def painting_text(self) -> str:
        self.page.wait_for_function(f"!{MOUNTED}.dirty")
        return self.js(f"{MOUNTED}.field.value")

    @property
    def concepts(self) -> list[dict]:
        return self.painting.get("concepts", [])

    def map(self, index: int = 0) -> tuple[list[float], int, int]:
        """What the canvas has drawn for a layer: its values, width and height."""
        code = f"""() => {{
            const map = {EDITOR}.mapOf({EDITOR}.layers[{index}]);
            return map && [Array.from(map.data), map.width, map.height];
        }}"""
        self.page.wait_for_function(f"{EDITOR}.mapOf({EDITOR}.layers[{index}]) !== null", timeout=60_000)
        return self.page.evaluate(code)

    @property
    def status(self) -> str:
        return self.page.inner_text(".mn-status")

    @property
    def canvas(self) -> Any:
        return self.page.locator(f"{self.scope} .mn-canvas")

    # --- Concepts and tools

    def add_concept(self, prompt: str = "") -> None:
        self.page.click(f"{self.scope} >> text=Add concept")
        self.page.locator(f"{self.scope} .mn-active textarea").first.fill(prompt)

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def tool(self, key: str) -> None:
        self.page.locator(".mn-canvas").focus()
        self.page.keyboard.press(key)

    def brush(self, **settings: Any) -> None:
        self.js(f"{EDITOR}.setTool({json.dumps(settings)})")

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A point of the picture (0 to 1) in the window."""
        box = self.js(
            f"""() => {{
                const {{x, y, width, height}} = {MOUNTED}.panel.stage.frame;
                const canvas = {MOUNTED}.panel.stage.canvas;
                const {{left, top, ...seen}} = canvas.getBoundingClientRect().toJSON();
                const scale = seen.width / canvas.clientWidth;
                return [left + x * scale, top + y * scale, width * scale, height * scale];
            }}"""
        )
        return box[0] + x * box[2], box[1] + y * box[3]

    def drag(self, *points: tuple[float, float], steps: int = 8) -> None:
        """Press the mouse at the first point, move it through the others, let go."""
        mouse = self.page.mouse
        self.canvas.scroll_into_view_if_needed()
        mouse.move(*self.place(*points[0]))
        mouse.down()
        for point in points[1:]:
            mouse.move(*self.place(*point), steps=steps)
        mouse.up()

    # --- The page

    def set_number(self, elem_id: str, value: float) -> None:
        number = self.page.locator(f"#{elem_id} input[type=number]")
        number.fill(str(value))
        number.blur()

    def generate(self, seconds: float = 120) -> str:
        self.page.click("#txt2img_generate")
        words = "document.querySelector('#txt2img_progress').innerText"
        self.page.wait_for_function(f"/Starting|Sampling/.test({words})")
        return self.wait_until_done(seconds)

    def wait_until_done(self, seconds: float = 120) -> str:
        done = "/Done|Stopped|:/.test(document.querySelector('#txt2img_progress').innerText)"
        sampling = "document.querySelector('#txt2img_progress').innerText.includes('Sampling')"
        self.page.wait_for_function(f"{done} && !{sampling}", timeout=seconds * 1000)
        return self.page.inner_text("#txt2img_progress")

    def open_accordion(self, name: str) -> None:
        self.page.locator(".label-wrap").filter(has_text=re.compile(rf"^\s*{name}\b")).click()


def _elsewhere(url: str, origin: str) -> bool:
    return not url.startswith((origin, "data:", "blob:"))
