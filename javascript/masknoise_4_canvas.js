/*
 * The stage: shows the layers, the backdrop and the brush, and turns pointers into strokes and shapes.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});
    const {raster, regions, rounded, simplify} = MaskNoise;
    const {StrokePainter, clamp} = raster;

    const ZOOM = [0.25, 16];
    const OFF = 0.3; // of its opacity: how strongly a layer is shown whose concept is off
    const MARGIN = 12; // CSS pixels around the picture
    const TOLERANCE = 0.0012; // of the shorter side, a thirteenth of a latent's pixel at 512²: how far a stroke may be off
    const SMALLEST = 0.004; // of the picture: a drag shorter than this is a click

    const inside = ([x, y]) => x >= 0 && x <= 1 && y >= 0 && y <= 1;

    function canvasOf(width, height) {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [width, height];
        return canvas;
    }

    const rgbOf = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));

    /** Where the segment from a (inside the picture) to b (outside) leaves it. */
    function exit(a, b) {
        let t = 1;
        for (const axis of [0, 1]) {
            const way = b[axis] - a[axis];
            if (b[axis] < 0) t = Math.min(t, -a[axis] / way);
            if (b[axis] > 1) t = Math.min(t, (1 - a[axis]) / way);
        }
        return a.map((value, i) => (i < 2 ? clamp(value + t * (b[i] - value), 0, 1) : value));
    }

    // --- One stroke while it is being painted

    /** Draws a stroke on a layer's tint as it grows. A stroke that leaves the picture and comes back is several. */
    class LiveStroke {
        constructor(stage, layer, style) {
            this.stage = stage;
            this.layer = layer;
            this.style = style;
            this.whole = raster.complete.stroke(style);
            this.base = stage.editor.mapOf(layer);
            this.cover = stage.scratch(this.base);
            this.runs = [];
            this.painter = null;
            this.last = null;
        }

        add(point) {
            const {last} = this;
            this.last = point;
            if (inside(point)) {
                if (!this.painter) this.start(last ? exit(point, last) : point);
                this.extend(point);
            } else if (this.painter) {
                this.extend(exit(last, point));
                this.painter = null;
            }
        }

        start(point) {
            this.painter = new StrokePainter(this.cover, this.whole);
            this.runs.push({points: [], painter: this.painter});
            this.extend(point);
        }

        extend(point) {
            this.runs.at(-1).points.push(point);
            this.stage.paintTint(this.layer, this.base, this.cover, this.whole, this.painter.add(point));
        }

        /** The strokes, simplified and rounded. */
        operations() {
            return this.runs.map(({points}) => ({points: this.simplified(points), ...this.style}));
        }

        simplified(points) {
            const {width, height} = this.base;
            const unit = this.style.radius * Math.min(width, height);
            const place = ([x, y, pressure = 1]) => [x * width, y * height, pressure * unit];
            return simplify(points, TOLERANCE * Math.min(width, height), place).map((point) => point.map(rounded));
        }

        end() {
            for (const {painter} of this.runs) painter.clear();
        }
    }

    // --- The stage

    class Stage {
        constructor(editor, {canvas, colours, onCursor}) {
            this.editor = editor;
            this.canvas = canvas;
            this.context = canvas.getContext("2d");
            this.colours = colours;
            this.onCursor = onCursor;
            this.tints = new Map();
            this.flat = null;
            this.backdrop = null;
            this.backdropFit = "fill"; // as CSS's object-fit
            this.backdropOpacity = 0.5;
            this.live = null; // the picture under the masks while they are painted
            this.shade = 1; // how strongly the masks are shown over it
            this.zoom = 1;
            this.offset = [0, 0];
            this.pointers = new Map();
            this.gesture = null;
            this.cursor = null;
            this.panning = false;
            this.handles = new MaskNoise.Handles(this);
            this.listen();
            new ResizeObserver(() => this.resize()).observe(canvas);
        }

        colour(layer) {
            return this.colours[this.editor.layers.indexOf(layer) % this.colours.length];
        }

        /** How strongly a layer is shown: one that is off, weakly. */
        shownOpacity(layer) {
            return this.editor.view(layer).opacity * (layer.fields.enabled === false ? OFF : 1);
        }

        /** The map that strokes are covered on: one for all of a size, empty between strokes. */
        scratch({width, height}) {
            if (this.spare?.width !== width || this.spare?.height !== height) this.spare = raster.newMap(width, height);
            return this.spare;
        }

        // --- Where things are

        resize() {
            const {clientWidth, clientHeight} = this.canvas;
            const scale = window.devicePixelRatio || 1;
            this.canvas.width = Math.round(clientWidth * scale);
            this.canvas.height = Math.round(clientHeight * scale);
            this.update();
        }

        /** The picture's place on the canvas in CSS pixels. */
        get frame() {
            const {clientWidth, clientHeight} = this.canvas;
            const {width, height} = this.editor;
            const fit = Math.min((clientWidth - 2 * MARGIN) / width, (clientHeight - 2 * MARGIN) / height);
            const scale = Math.max(fit, 1e-3) * this.zoom;
            const [w, h] = [width * scale, height * scale];
            const x = (clientWidth - w) / 2 + this.offset[0];
            const y = (clientHeight - h) / 2 + this.offset[1];
            return {x, y, width: w, height: h};
        }

        /** Where an event is on the canvas in its own CSS pixels: the page may show it larger or smaller than that. */
        place(event) {
            const {clientWidth, clientHeight} = this.canvas;
            const {left, top, width, height} = this.canvas.getBoundingClientRect();
            return [((event.clientX - left) * clientWidth) / width, ((event.clientY - top) * clientHeight) / height];
        }

        /** A place on the canvas as a point of the picture, 0 to 1 (beyond its edges: outside). */
        toPicture([x, y]) {
            const frame = this.frame;
            return [(x - frame.x) / frame.width, (y - frame.y) / frame.height];
        }

        zoomAt([x, y], factor) {
            const zoom = clamp(this.zoom * factor, ...ZOOM);
            const ratio = zoom / this.zoom;
            const middle = [this.canvas.clientWidth / 2, this.canvas.clientHeight / 2];
            const from = [x - middle[0], y - middle[1]];
            this.offset = this.offset.map((value, i) => from[i] - (from[i] - value) * ratio);
            this.zoom = zoom;
            this.update();
        }

        zoomBy(factor) {
            this.zoomAt([this.canvas.clientWidth / 2, this.canvas.clientHeight / 2], factor);
        }

        fit() {
            this.zoom = 1;
            this.offset = [0, 0];
            this.update();
        }

        // --- Drawing

        /** Something changed: draw at the next picture frame. */
        update(layersChanged = false) {
            if (layersChanged) this.flat = null;
            this.frameRequest ??= requestAnimationFrame(() => {
                this.frameRequest = null;
                this.render();
            });
        }

        render() {
            this.gesture?.flush?.();
            this.refreshTints();
            if (this.editor.pump()) this.update(true);
            this.flat ??= this.flatten();
            const scale = window.devicePixelRatio || 1;
            const {context} = this;
            const {x, y, width, height} = this.frame;
            context.setTransform(scale, 0, 0, scale, 0, 0);
            context.clearRect(0, 0, this.canvas.clientWidth, this.canvas.clientHeight);
            context.fillStyle = getComputedStyle(this.canvas).getPropertyValue("--mn-paper") || "#2c2c30";
            context.fillRect(x, y, width, height);
            context.imageSmoothingEnabled = true;
            this.drawBackdrop();
            this.drawPicture(this.live, 1);
            this.drawPicture(this.flat.below, this.shade);
            const layer = this.editor.active;
            const view = layer && this.editor.view(layer);
            if (view?.visible) {
                const tint = (this.gesture?.tint ?? this.tints.get(layer.id))?.canvas;
                this.drawPicture(tint, this.shownOpacity(layer) * this.shade);
            }
            this.drawPicture(this.flat.above, this.shade);
            context.save();
            context.beginPath();
            context.rect(x, y, width, height);
            context.clip();
            this.gesture?.outline?.(context);
            context.restore();
            this.handles.draw(context);
            this.drawCursor();
        }

        /** The backdrop as large as `backdropFit` says, cut off at the picture's edges. */
        drawBackdrop() {
            const {backdrop, context, frame} = this;
            if (!backdrop) return;
            const [x, y] = [frame.width / backdrop.naturalWidth, frame.height / backdrop.naturalHeight];
            const scale = {cover: Math.max(x, y), contain: Math.min(x, y)}[this.backdropFit];
            const width = scale ? backdrop.naturalWidth * scale : frame.width;
            const height = scale ? backdrop.naturalHeight * scale : frame.height;
            context.save();
            context.beginPath();
            context.rect(frame.x, frame.y, frame.width, frame.height);
            context.clip();
            context.globalAlpha = this.backdropOpacity;
            const [left, top] = [frame.x + (frame.width - width) / 2, frame.y + (frame.height - height) / 2];
            context.drawImage(backdrop, left, top, width, height);
            context.restore();
        }

        drawPicture(picture, opacity) {
            if (!picture) return;
            const {x, y, width, height} = this.frame;
            this.context.globalAlpha = opacity;
            this.context.drawImage(picture, x, y, width, height);
            this.context.globalAlpha = 1;
        }

        drawCursor() {
            const moving = this.editor.tool.name === "move";
            this.canvas.style.cursor = moving && !this.panning ? this.handles.cursorAt(this.cursor) : "";
            if (!this.cursor || this.panning || moving) return;
            const {context} = this;
            const [x, y] = this.cursor;
            const {width, height} = this.frame;
            const round = ["brush", "eraser", "line"].includes(this.editor.tool.name);
            const radius = round ? Math.max(this.editor.radius * Math.min(width, height), 1.5) : 4;
            for (const [colour, grow] of [
                ["#000", 1],
                ["#fff", 0],
            ]) {
                context.beginPath();
                context.arc(x, y, radius + grow, 0, 2 * Math.PI);
                context.strokeStyle = colour;
                context.lineWidth = 1;
                context.stroke();
            }
        }

        /** Layers below and above the active one as one picture each: painting then costs three pictures a frame. */
        flatten() {
            const {layers, active} = this.editor;
            const at = layers.indexOf(active);
            return {below: this.merged(layers.slice(0, Math.max(at, 0))), above: this.merged(layers.slice(at + 1))};
        }

        merged(layers) {
            const shown = layers.filter((layer) => this.editor.view(layer).visible && this.tints.has(layer.id));
            if (!shown.length) return null;
            const {width, height} = this.editor.rasters;
            const canvas = canvasOf(width, height);
            const context = canvas.getContext("2d");
            for (const layer of shown) {
                context.globalAlpha = this.shownOpacity(layer);
                context.drawImage(this.tints.get(layer.id).canvas, 0, 0, width, height);
            }
            return canvas;
        }

        /** Tint again the layers whose map or colour is another one than shown. */
        refreshTints() {
            if (this.gesture?.live) return;
            const {layers, rasters} = this.editor;
            const ids = new Set(layers.map((layer) => layer.id));
            for (const id of this.tints.keys()) if (!ids.has(id)) this.tints.delete(id);
            for (const layer of layers) {
                const tint = this.tints.get(layer.id);
                const colour = this.colour(layer);
                if (tint?.chain === layer.chain && tint.colour === colour && tint.rasters === rasters) continue;
                const map = this.editor.mapOf(layer);
                if (!map) continue;
                this.tints.set(layer.id, {...this.tinted(map, colour, tint), chain: layer.chain, colour, rasters});
                this.flat = null;
            }
        }

        tinted(map, colour, old) {
            const {width, height} = map;
            const fits = old?.canvas.width === width && old.canvas.height === height;
            const canvas = fits ? old.canvas : canvasOf(width, height);
            const context = fits ? old.context : canvas.getContext("2d");
            const tint = {canvas, context, rgb: rgbOf(colour)};
            this.putTint(tint, {left: 0, top: 0, right: width, bottom: height}, (i) => map.data[i], width);
            return tint;
        }

        putTint({context, rgb}, {left, top, right, bottom}, value, width) {
            const pixels = context.createImageData(right - left, bottom - top);
            const {data} = pixels;
            let at = 0;
            for (let row = top; row < bottom; row++) {
                for (let i = row * width + left, end = row * width + right; i < end; i++) {
                    data[at] = rgb[0];
                    data[at + 1] = rgb[1];
                    data[at + 2] = rgb[2];
                    data[at + 3] = value(i) * 255 + 0.5;
                    at += 4;
                }
            }
            context.putImageData(pixels, left, top);
        }

        /** Show a stroke that is being painted, where it has just changed. */
        paintTint(layer, base, cover, {opacity, erase}, area) {
            const tint = this.tints.get(layer.id);
            if (!area || !tint) return;
            const value = erase
                ? (i) => base.data[i] * (1 - cover.data[i] * opacity)
                : (i) => base.data[i] + cover.data[i] * opacity * (1 - base.data[i]);
            this.putTint(tint, area, value, base.width);
        }

        // --- Pointers

        listen() {
            const {canvas} = this;
            canvas.addEventListener("pointerdown", (event) => this.down(event));
            canvas.addEventListener("pointermove", (event) => this.move(event));
            canvas.addEventListener("pointerup", (event) => this.up(event));
            canvas.addEventListener("pointercancel", (event) => this.cancel(event));
            canvas.addEventListener("pointerleave", () => this.hover(null));
            canvas.addEventListener("contextmenu", (event) => event.preventDefault());
            canvas.addEventListener(
                "wheel",
                (event) => {
                    if (!event.ctrlKey && !event.metaKey) return; // a plain wheel scrolls the page
                    event.preventDefault();
                    this.zoomAt(this.place(event), Math.exp(-event.deltaY / 300));
                },
                {passive: false},
            );
        }

        down(event) {
            if (event.pointerType === "mouse" && event.button === 2) return;
            event.preventDefault();
            this.canvas.focus({preventScroll: true});
            this.canvas.setPointerCapture(event.pointerId);
            this.pointers.set(event.pointerId, this.place(event));
            if (this.pointers.size === 2) return this.pinch();
            if (this.pointers.size > 2) return;
            if (this.panning || event.button === 1) this.begin(this.panGesture());
            else this.begin(this.toolGesture(event));
            this.gesture?.move(event);
            this.update();
        }

        begin(gesture) {
            this.gesture?.cancel?.();
            this.gesture = gesture;
        }

        /** A second finger: what the first began is no stroke. */
        pinch() {
            this.begin(this.pinchGesture());
            this.update();
        }

        move(event) {
            this.hover(event.pointerType === "touch" ? null : this.place(event));
            if (!this.pointers.has(event.pointerId)) return;
            this.gesture?.move(event);
            this.pointers.set(event.pointerId, this.place(event));
            this.update();
        }

        hover(place) {
            this.cursor = place;
            this.onCursor?.(place);
            this.update();
        }

        up(event) {
            if (!this.pointers.delete(event.pointerId)) return;
            if (this.pointers.size === 0) {
                const {gesture} = this;
                gesture?.flush?.();
                this.gesture = null;
                gesture?.end?.(event);
            }
            this.update();
        }

        cancel(event) {
            this.pointers.delete(event.pointerId);
            this.begin(null);
            this.update();
        }

        // --- Gestures: move(event), flush() before a frame, outline(context), operations() so far, end(event), cancel()

        panGesture() {
            return {
                move: (event) => {
                    const before = this.pointers.get(event.pointerId);
                    const now = this.place(event);
                    this.offset = this.offset.map((value, i) => value + now[i] - before[i]);
                },
            };
        }

        pinchGesture() {
            const spread = () => {
                const [a, b] = [...this.pointers.values()];
                const middle = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
                return {middle, distance: Math.max(Math.hypot(a[0] - b[0], a[1] - b[1]), 1)};
            };
            let before = spread();
            return {
                move: (event) => {
                    if (this.pointers.size < 2) return;
                    this.pointers.set(event.pointerId, this.place(event));
                    const now = spread();
                    this.offset = this.offset.map((value, i) => value + now.middle[i] - before.middle[i]);
                    this.zoomAt(now.middle, now.distance / before.distance);
                    before = now;
                },
            };
        }

        /** A press without any concept makes the first one; a second finger, which takes the press back, takes it too. */
        toolGesture(event) {
            if (this.editor.tool.name === "move") return this.handles.gesture(event);
            const first = this.editor.ensureConcept();
            const gesture = this.editor.allowed() ? this.gestureOf(event) : null;
            if (!first || !gesture) return gesture;
            const {cancel} = gesture;
            return {
                ...gesture,
                cancel: () => {
                    cancel?.();
                    this.editor.undo();
                },
            };
        }

        gestureOf(event) {
            const {name, erase} = this.editor.tool;
            const subtract = erase || event.altKey;
            if (name === "brush" || name === "eraser") return this.strokeGesture(subtract || name === "eraser");
            if (name === "fill") return this.fillGesture(subtract);
            return this.dragGesture(name, subtract);
        }

        /** The fields of a stroke that the tools' settings give; those at their default are left out. */
        style(erase) {
            const {hardness, opacity, flow} = this.editor.tool;
            const style = {radius: rounded(clamp(this.editor.radius, 0.0005, 1)), hardness};
            if (opacity < 1) style.opacity = opacity;
            if (flow < 1) style.flow = flow;
            if (erase) style.erase = true;
            return style;
        }

        pointOf(event) {
            const point = this.toPicture(this.place(event));
            const pressed = event.pointerType === "pen" && this.editor.tool.pressure;
            return pressed ? [...point, clamp(event.pressure, 0, 1)] : point;
        }

        strokeGesture(erase) {
            this.refreshTints();
            const stroke = new LiveStroke(this, this.editor.active, this.style(erase));
            let waiting = [];
            return {
                live: true,
                move: (event) => {
                    const events = event.type === "pointermove" ? (event.getCoalescedEvents?.() ?? []) : [];
                    for (const one of events.length ? events : [event]) waiting.push(this.pointOf(one));
                },
                flush: () => {
                    for (const point of waiting) stroke.add(point);
                    waiting = [];
                },
                operations: () => stroke.operations(),
                end: () => {
                    stroke.end();
                    this.editor.add(stroke.operations());
                    this.retint(stroke.layer);
                },
                cancel: () => {
                    stroke.end();
                    this.retint(stroke.layer);
                },
            };
        }

        /** What was shown of a stroke gives way to what the layer holds. */
        retint(layer) {
            const tint = this.tints.get(layer.id);
            if (tint) tint.chain = undefined;
            this.update(true);
        }

        fillGesture(erase) {
            return {
                move: () => {},
                end: (event) => {
                    const [x, y] = this.toPicture(this.place(event));
                    if (!inside([x, y])) return;
                    const {width, height} = this.editor.rasters;
                    this.editor.fill(
                        Math.min(Math.floor(x * width), width - 1),
                        Math.min(Math.floor(y * height), height - 1),
                        erase,
                    );
                },
            };
        }

        /** Line, rectangle, ellipse and gradient: from where the pointer went down to where it goes up. */
        dragGesture(name, erase) {
            let from = null;
            let to = null;
            const operations = () => {
                if (!from) return [];
                const drag = Math.hypot(to[0] - from[0], to[1] - from[1]);
                if (drag < SMALLEST && name !== "line") return [];
                const operation = this.shapeOf(name, from.map(rounded), to.map(rounded), erase);
                return operation ? [operation] : [];
            };
            return {
                move: (event) => {
                    to = this.toPicture(this.place(event)).map((value) => clamp(value, 0, 1));
                    from ??= to;
                    if (event.shiftKey) to = this.constrained(name, from, to);
                },
                outline: (context) => from && this.drawOutline(context, name, from, to),
                operations,
                end: () => this.editor.add(operations()),
            };
        }

        /** With Shift: a square or circle, a line at a multiple of 45°. */
        constrained(name, from, to) {
            const {width, height} = this.editor;
            let [dx, dy] = [(to[0] - from[0]) * width, (to[1] - from[1]) * height];
            if (name === "rect" || name === "ellipse") {
                const side = Math.max(Math.abs(dx), Math.abs(dy));
                [dx, dy] = [side * (Math.sign(dx) || 1), side * (Math.sign(dy) || 1)];
            } else {
                const turn = (Math.round(Math.atan2(dy, dx) / (Math.PI / 4)) * Math.PI) / 4;
                const length = Math.hypot(dx, dy);
                [dx, dy] = [length * Math.cos(turn), length * Math.sin(turn)];
            }
            const room = Math.min(
                1,
                ...[dx / width, dy / height].map(
                    (way, i) => (way > 0 ? 1 - from[i] : way < 0 ? from[i] : 1) / (Math.abs(way) || 1),
                ),
            );
            return [from[0] + (dx * room) / width, from[1] + (dy * room) / height];
        }

        shapeOf(name, from, to, erase) {
            const {opacity} = this.editor.tool;
            if (name === "line") return {points: [from, to], ...this.style(erase)};
            const mask = this.maskOf(name, from, to);
            return mask && {mask, ...(opacity < 1 && {opacity}), ...(erase && {erase})};
        }

        maskOf(name, from, to) {
            const [left, right] = [from[0], to[0]].sort((a, b) => a - b);
            const [top, bottom] = [from[1], to[1]].sort((a, b) => a - b);
            const feather = this.shapeFeather(right - left, bottom - top);
            if (name === "gradient") return {kind: "gradient", shape: this.editor.tool.gradient, from, to};
            if (right - left < 0.002 || bottom - top < 0.002) return null;
            if (name === "rect") return {kind: "rect", left, top, right, bottom, feather};
            const [x, y] = [rounded((left + right) / 2), rounded((top + bottom) / 2)];
            const [rx, ry] = [rounded((right - left) / 2), rounded((bottom - top) / 2)];
            return {kind: "ellipse", x, y, rx, ry, feather};
        }

        /** Shapes are as soft as the brush is: hardness 0 softens them up to their middle. */
        shapeFeather(width, height) {
            const shorter = Math.min(this.editor.width, this.editor.height);
            const side = Math.min(width * this.editor.width, height * this.editor.height) / shorter;
            return rounded(clamp((1 - this.editor.tool.hardness) * side, 0, 1));
        }

        drawOutline(context, name, from, to) {
            const {frame} = this;
            const mask = name === "line" ? {kind: "gradient", from, to} : this.maskOf(name, from, to);
            if (!mask) return;
            const path = regions.outline(mask, frame);
            if (name === "line") {
                context.globalAlpha = 0.4;
                context.lineCap = "round";
                context.lineWidth = 2 * this.editor.radius * Math.min(frame.width, frame.height);
                context.strokeStyle = this.colour(this.editor.active);
                context.stroke(path);
                context.globalAlpha = 1;
            }
            this.dashed(context, path);
        }

        /** A line that can be seen on every ground. */
        dashed(context, path) {
            for (const [colour, dash] of [
                ["#000", []],
                ["#fff", [5, 4]],
            ]) {
                context.lineWidth = 1.5;
                context.setLineDash(dash);
                context.strokeStyle = colour;
                context.stroke(path);
            }
            context.setLineDash([]);
        }

        // --- The keyboard as a pointer

        /** Move the keyboard's brush by a part of the picture's shorter side. */
        nudge(dx, dy) {
            const {width, height} = this.editor;
            const shorter = Math.min(width, height);
            const at = this.keyPoint ?? [0.5, 0.5];
            this.keyPoint = [clamp(at[0] + (dx * shorter) / width, 0, 1), clamp(at[1] + (dy * shorter) / height, 0, 1)];
            const frame = this.frame;
            this.hover([frame.x + this.keyPoint[0] * frame.width, frame.y + this.keyPoint[1] * frame.height]);
            return this.keyPoint;
        }

        /** Put a dab where the keyboard's brush is, or with `joined` a line from the last dab. */
        dab(joined) {
            this.editor.ensureConcept();
            const to = (this.keyPoint ?? [0.5, 0.5]).map(rounded);
            const points = joined && this.lastDab ? [this.lastDab, to] : [to];
            this.editor.add([{points, ...this.style(this.editor.tool.erase || this.editor.tool.name === "eraser")}]);
            this.lastDab = to;
        }
    }

    Object.assign(MaskNoise, {Stage});
})();
