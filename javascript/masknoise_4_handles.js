/*
 * The move tool: takes hold of shapes that were drawn before, and shows what becomes of them while they are pulled.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});
    const {raster, regions} = MaskNoise;

    const SIDE = 9; // CSS pixels of a handle
    const REACH = {mouse: 9, pen: 12, touch: 22}; // CSS pixels from a handle's middle in which it is taken
    const SHOWN_SIDE = 256; // pixels of the longer side of what is shown while a shape is pulled
    const AFTER = 24; // operations after a shape that are drawn again with it in each frame; with more, its outline moves

    const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);

    /** A layer's map with one of its shapes changed, small and without keeping anything. Null where that takes long. */
    class Sketch {
        constructor(editor, {at}) {
            const operations = MaskNoise.operationsOf(editor.active.chain);
            this.operation = operations[at];
            this.after = operations.slice(at + 1);
            this.pictures = editor.pictures.get;
            const scale = Math.min(1, SHOWN_SIDE / Math.max(editor.rasters.width, editor.rasters.height));
            const [width, height] = [editor.rasters.width, editor.rasters.height].map((n) =>
                Math.max(1, Math.round(n * scale)),
            );
            this.before =
                this.after.length <= AFTER ? this.draw(raster.newMap(width, height), operations.slice(0, at)) : null;
        }

        draw(map, operations) {
            try {
                for (const operation of operations) raster.apply(map, operation, this.pictures);
                return map;
            } catch {
                return null; // a picture that is not there: it is drawn when the shape is let go
            }
        }

        with(mask) {
            return this.before && this.draw(raster.copyMap(this.before), [{...this.operation, mask}, ...this.after]);
        }
    }

    class Handles {
        constructor(stage) {
            this.stage = stage;
            this.editor = stage.editor;
        }

        get size() {
            const {width, height} = this.editor;
            return {width, height};
        }

        /** What is held: its mask as it is while it is pulled. */
        get mask() {
            return this.pulled ?? this.editor.region?.mask ?? null;
        }

        /** The handles of what is held: [name, place on the canvas]. */
        places() {
            const {frame} = this.stage;
            const all = Object.entries(regions.handles(this.mask, this.size, frame));
            return all.map(([name, [x, y]]) => [name, [frame.x + x * frame.width, frame.y + y * frame.height]]);
        }

        handleAt(place, reach = REACH.mouse) {
            if (!this.mask) return null;
            const near = this.places().filter(([, at]) => distance(at, place) <= reach);
            return near.sort((a, b) => distance(a[1], place) - distance(b[1], place))[0]?.[0] ?? null;
        }

        /** The topmost shape at a point of the picture: of the active layer, else of another one that can be painted. */
        regionAt(point) {
            const {editor} = this;
            const others = editor.layers.filter((layer) => layer !== editor.active).reverse();
            for (const layer of editor.active ? [editor.active, ...others] : others) {
                const {visible, locked} = editor.view(layer);
                if (!visible || locked) continue;
                const region = editor.regionsOf(layer).findLast(({mask}) => regions.contains(mask, point, this.size));
                if (region) return {layer, region};
            }
            return null;
        }

        cursorAt(place) {
            if (!place) return "";
            if (this.handleAt(place)) return "grab";
            return this.regionAt(this.stage.toPicture(place)) ? "move" : "default";
        }

        draw(context) {
            if (!this.mask) return;
            this.stage.dashed(context, regions.outline(this.mask, this.stage.frame));
            for (const [name, [x, y]] of this.places()) {
                const path = new Path2D();
                if (name === "turn") path.arc(x, y, SIDE / 2, 0, 2 * Math.PI);
                else path.rect(x - SIDE / 2, y - SIDE / 2, SIDE, SIDE);
                context.fillStyle = "#fff";
                context.fill(path);
                context.lineWidth = 1.5;
                context.strokeStyle = "#000";
                context.stroke(path);
            }
        }

        /** A press: on a handle it pulls that, on a shape it moves the shape, elsewhere it lets go. */
        gesture(event) {
            const {editor, stage} = this;
            const start = stage.place(event);
            const handle = this.handleAt(start, REACH[event.pointerType]);
            const from = stage.toPicture(start);
            if (!handle) {
                const found = this.regionAt(from);
                editor.pick(found?.layer, found?.region);
            }
            const {region} = editor;
            if (!region || !editor.allowed(editor.bar)) return null;
            const changed = handle
                ? (point) => regions.dragged(region.mask, handle, point, this.size)
                : (point) => regions.moved(region.mask, point[0] - from[0], point[1] - from[1]);
            return this.pulling(region, start, changed);
        }

        pulling(region, start, changed) {
            const {editor, stage} = this;
            const layer = editor.active;
            const sketch = new Sketch(editor, region);
            let shown = null;
            const gesture = {
                tint: null,
                move: (event) => {
                    const place = stage.place(event);
                    if (this.pulled || distance(place, start) >= 2) this.pulled = changed(stage.toPicture(place));
                },
                flush: () => {
                    if (this.pulled === shown) return;
                    shown = this.pulled;
                    const map = sketch.with(shown);
                    if (map) gesture.tint = stage.tinted(map, stage.colour(layer), gesture.tint);
                },
                end: () => {
                    const {pulled} = this;
                    this.pulled = null;
                    if (pulled) editor.changeRegion(pulled);
                },
                cancel: () => (this.pulled = null),
            };
            return gesture;
        }
    }

    Object.assign(MaskNoise, {Handles});
})();
