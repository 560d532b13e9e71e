"""A scene as infotext parameters, and back: what an image carries along, and what pasting it restores.

    MaskNoise: 1, MaskNoise concept 1 prompt: a wheat field, MaskNoise concept 1 weight: 0.8, MaskNoise masks: eNqr…

Every scalar control that differs from its default has a key of its own (`Control.infotext`, a concept's numbered from
1), for people to read and edit: it is the only copy of the value. What no scalar control holds (masks, keyframes, the
noises' own motions) is under MASKS. KEY, the version of the scene format, and a concept's prompt are always there.

Where a picture's container cannot hold that much, MASKS names a file with it instead (`lighter`).

The hosts split such text at commas and colons. They quote values that hold any, and unquote them again, but some values
do not come through: an empty one is lost, ``2x1`` becomes two keys, ``"a"`` loses its quotation marks, and so on. Texts
like these are written as ``json: "…"``.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lib_masknoise.controls import CONTROLS, Value, control
from lib_masknoise.scene import MAX_CONCEPTS, MAX_IMAGE_BYTES, VERSION, Problem, Scene, SceneError

KEY = "MaskNoise"
MASKS = "MaskNoise masks"

FOLDER = "masknoise-masks"
"""Of an output folder, with the masks that pictures name instead of holding them."""
DIGITS = 24  # of a file's sha256, its name
LEFT_OUT = "left out"
_FILE = "file "

FRAME, FILES, ERROR, BLENDING, REMARKS, INTERRUPTED = NOTES = (
    "MaskNoise frame",
    "MaskNoise files",
    "MaskNoise error",
    "MaskNoise blending",
    "MaskNoise remarks",
    "MaskNoise interrupted",
)
"""Keys by which a host says what became of a scene. They are no part of it."""


def _keys() -> Iterator[tuple[str, str]]:
    of_concepts = [entry for entry in CONTROLS if entry.path.startswith("concepts[]")]
    for i in range(MAX_CONCEPTS):
        for entry in of_concepts:
            yield entry.infotext.replace("concept", f"concept {i + 1}", 1), entry.path.replace("[]", f"[{i}]")
    for entry in CONTROLS:
        if entry not in of_concepts:
            yield entry.infotext, entry.path


PATHS: dict[str, str] = dict(_keys())
"""Each scalar control's key and its place in a scene: "MaskNoise concept 2 weight" is "concepts[1].weight"."""

_KEYS = {path: key for key, path in PATHS.items()} | {"version": KEY}


def write(scene: Scene) -> dict[str, str]:
    """The infotext parameters of a scene. `read` makes an equal scene of them, also after a host's quoting."""
    rest = scene.to_dict(defaults=False)
    rest.pop("version", None)
    params = {KEY: str(scene.version)}
    for key, path in PATHS.items():
        value = _take(rest, [int(step) if step.isdigit() else step for step in re.findall(r"\w+", path)])
        if value is not None:
            params[key] = _to_text(value, key)
    if not any(rest.get("concepts", ())):
        rest.pop("concepts", None)
    if rest:
        params[MASKS] = _pack(rest)
    return params


def lighter(text: str, keep: Callable[[str, bytes], bool]) -> str:
    """An infotext without the bulk of its masks: they are named by a file, which ``keep(name, content)`` is to write,
    or are left out where it returns false. Text without masks, or with masks that cannot be read, stays as it is."""
    found = re.search(rf"{MASKS}: ([\w=-]+)(?=, |$)", text)
    if not found:
        return text
    try:
        content = json.dumps(_unpack(found[1]), ensure_ascii=False, indent=1).encode()
    except SceneError:
        return text
    name = f"{hashlib.sha256(content).hexdigest()[:DIGITS]}.json"
    value = f"{_FILE}{name}" if keep(name, content) else LEFT_OUT
    return text[: found.start(1)] + value + text[found.end(1) :]


def beside(params: Mapping[str, str], keep: Callable[[str, bytes], bool]) -> dict[str, str]:
    """What `write` gave, with its masks in a file beside (`lighter`); as it was where that cannot be written."""
    if MASKS not in params:
        return dict(params)
    name = lighter(f"{MASKS}: {params[MASKS]}", keep).removeprefix(f"{MASKS}: ")
    return {**params, MASKS: params[MASKS] if name == LEFT_OUT else name}


def _kept(text: str, find: Callable[[str], bytes | None] | None) -> dict[str, Any]:
    """The masks that an infotext has, or names. Raises SceneError."""
    name = text.strip().removeprefix(_FILE)
    if text.strip() == LEFT_OUT:
        message = "left out, as the picture's file could not hold them and no other file was written"
    elif not re.fullmatch(rf"[0-9a-f]{{{DIGITS}}}\.json", name):
        return _unpack(text)
    elif (content := find(name) if find else None) is None:
        message = f"they are in the file {name}, in the folder {FOLDER} of the output folder: it was not found"
    elif hashlib.sha256(content).hexdigest()[:DIGITS] != name[:DIGITS]:
        message = f"the file {name} has been changed"
    else:
        return json.loads(content)
    raise SceneError([Problem(MASKS, message)])


def text(prompt: str, negative_prompt: str, params: Mapping[str, str]) -> str:
    """A whole infotext, as the WebUIs write it."""
    listed = ", ".join(f"{key}: {_quoted(value)}" for key, value in params.items())
    negative = f"\nNegative prompt: {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{listed}"


def _quoted(value: str) -> str:
    """A value, whose own commas, colons and line ends would end it."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(",:\n") else value


def read(params: Mapping[str, Any], find: Callable[[str], bytes | None] | None = None) -> Scene | None:
    """The scene in a host's infotext parameters, None where there is none: the inverse of `write`.

    find: gives the content of a file of masks by its name (`lighter`), None where there is none. Keys of others and
    NOTES are left alone. Raises SceneError with the problems, each with the infotext's key as its path: a key of ours
    that is unknown, a value that does not fit, damaged or missing masks, a concept without a prompt.
    """
    ours = {key: str(value) for key, value in params.items() if key.split(" ")[0] == KEY and key not in NOTES}
    if not ours:
        return None
    tree = _kept(ours.pop(MASKS), find) if MASKS in ours else {}
    tree["version"] = _number(ours.pop(KEY, str(VERSION)))
    changes, wrong = {}, []
    for key, text in ours.items():
        try:
            changes[PATHS[key]] = _from_text(text, control(PATHS[key]).default)
        except KeyError:
            wrong.append(Problem(key, "not a key of this version of MaskNoise"))
        except ValueError as error:
            wrong.append(Problem(key, str(error)))
    if isinstance(tree.get("concepts", []), list):
        tree["concepts"] = _as_many_as_named(tree.get("concepts", []), changes)
        prompts = (f"concepts[{i}].prompt" for i in range(min(len(tree["concepts"]), MAX_CONCEPTS)))
        wrong += [
            Problem(_KEYS[path], "missing; expected the concept's prompt") for path in prompts if path not in changes
        ]
    if wrong:
        raise SceneError(tuple(wrong))
    for i, concept in enumerate(tree["concepts"] if isinstance(tree["concepts"], list) else ()):
        if isinstance(concept, dict):
            concept["prompt"] = changes.get(f"concepts[{i}].prompt", "")
    try:
        return Scene.parse(tree).replace(changes)
    except SceneError as error:
        raise SceneError(tuple(map(_by_key, error.problems))) from None


def _as_many_as_named(concepts: list[Any], paths: Mapping[str, Any]) -> list[Any]:
    """The concepts, and one with no mask of its own for each further number that the paths name."""
    named = [int(path[len("concepts[") : path.index("]")]) + 1 for path in paths if path.startswith("concepts[")]
    return concepts + [{} for _ in range(max(named, default=0) - len(concepts))]


def _by_key(problem: Problem) -> Problem:
    key = _KEYS.get(re.sub(r"\[\d+\]$", "", problem.path))
    return Problem(key, problem.message) if key else Problem(MASKS, str(problem))


def _take(node: Any, steps: list[str | int]) -> Any:
    """Take a value out of a tree, and with it every object that becomes empty; None where there is no such value."""
    step, *rest = steps
    if isinstance(node, list) and isinstance(step, int):
        return _take(node[step], rest) if step < len(node) else None
    if not rest:
        return node.pop(step, None)
    if step not in node:
        return None
    value = _take(node[step], rest)
    if node[step] == {}:
        del node[step]
    return value


# --- Values as text

_JSON = "json: "
_SWITCH = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


def _to_text(value: Value | list[str], key: str) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return " ".join(value)
    if isinstance(value, str):
        return value if _comes_through(value, key) else _JSON + json.dumps(value)
    return repr(value).removesuffix(".0")


def _comes_through(text: str, key: str) -> bool:
    """Whether a host that writes and reads the text as a value of ``key`` gets the same again."""
    return (
        text not in ("", key, "True", "False")
        and text == text.strip()
        and not text.startswith(('"', _JSON))
        and not re.fullmatch(r"\d+x\d+", text)
        and not any(unicodedata.category(sign) == "Cc" and sign != "\n" for sign in text)
    )


def _from_text(text: str, default: Value) -> Any:
    """A value of the type of ``default``, as nearly as the text is one: the scene's own check says what is wrong with
    the others. Raises ValueError for damaged JSON."""
    if isinstance(default, bool):
        return _SWITCH.get(text.lower(), text)
    if isinstance(default, tuple):
        return re.split(r"[\s,/+]+", text.strip())
    if isinstance(default, str):
        return json.loads(text.removeprefix(_JSON)) if text.startswith(_JSON) else text
    return _number(text)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


# --- What is not scalar: base64url(zlib(JSON, a zero byte, the bytes of the mask images))

_MAX_UNPACKED = MAX_CONCEPTS * MAX_IMAGE_BYTES  # infotext comes from anywhere; a little of it must not fill the memory


def _pack(tree: dict[str, Any]) -> str:
    images: list[bytes] = []
    scene = _lifted(tree, images)
    head = json.dumps([scene, [len(image) for image in images]], ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(zlib.compress(b"".join([head.encode(), b"\0", *images]), 9)).decode()


def _unpack(text: str) -> dict[str, Any]:
    """The inverse of `_pack`. Raises SceneError where the text is not the whole of what that returned."""
    try:
        packed = base64.b64decode(text.strip(), b"-_", validate=True)
        stream = zlib.decompressobj()
        raw = stream.decompress(packed, _MAX_UNPACKED)
        if not stream.eof:
            raise ValueError("it is cut short or too large")
        head, _, body = raw.partition(b"\0")
        scene, sizes = json.loads(head)
        ends = list(itertools.accumulate(sizes, initial=0))
        if not isinstance(scene, dict):
            raise TypeError("it holds no scene")
        return _lowered(scene, [body[start:end] for start, end in itertools.pairwise(ends)])
    except (ValueError, TypeError, LookupError, RecursionError, zlib.error) as error:
        reason = str(error).split("\n")[0][:100]
        raise SceneError((Problem(MASKS, f"damaged; expected it as MaskNoise wrote it ({reason})"),)) from None


def _lifted(node: Any, images: list[bytes]) -> Any:
    """A tree whose mask images are replaced by what stands before their base64 text and their places in ``images``,
    to which they are added. Base64 that is not in the usual form stays: it could not be restored to the letter."""
    if isinstance(node, list):
        return [_lifted(child, images) for child in node]
    if not isinstance(node, dict):
        return node
    if node.get("kind") == "image":
        head, comma, body = node["data"].rpartition(",")
        raw = base64.b64decode(body)
        if base64.b64encode(raw).decode() == body:
            if raw not in images:
                images.append(raw)
            return {**node, "data": [head + comma, images.index(raw)]}
    return {name: _lifted(child, images) for name, child in node.items()}


def _lowered(node: Any, images: list[bytes]) -> Any:
    """The inverse of `_lifted`."""
    if isinstance(node, list):
        return [_lowered(child, images) for child in node]
    if not isinstance(node, dict):
        return node
    if node.get("kind") == "image" and isinstance(node.get("data"), list):
        head, i = node["data"]
        return {**node, "data": head + base64.b64encode(images[i]).decode()}
    return {name: _lowered(child, images) for name, child in node.items()}
