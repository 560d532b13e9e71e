/*
 * What is painted: a document of layers, its history, its text, and its maps.
 *
 * Documents are never changed, only replaced: a document shares all it can with the one before, so the history may be
 * as long as it likes. A layer's operations form a chain, each link knowing the one before it: a stroke adds one link,
 * undo goes back to an older one, and a link whose map is still kept needs no drawing.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});
    const {apply, copyMap, newMap} = MaskNoise.raster;

    // --- Chains of operations

    /** What of an operation counts towards a scene's limits. */
    function amountsOf({points = [], radius = 0.05, flow = 1, mask, filter}) {
        let length = 0;
        for (let i = 1; i < points.length && flow < 1; i++) {
            length += Math.hypot(points[i][0] - points[i - 1][0], points[i][1] - points[i - 1][1]);
        }
        return {strokes: 1, points: points.length, stamps: mask ? 1 : 0, filters: filter ? 1 : 0, flow: length / radius};
    }

    /** The chain with one more operation. An empty chain is null. */
    function link(parent, operation) {
        const amounts = amountsOf(operation);
        for (const name in amounts) amounts[name] += parent?.amounts[name] ?? 0;
        return {parent, operation, text: JSON.stringify(operation), depth: (parent?.depth ?? 0) + 1, amounts};
    }

    /** The links of a chain after another one (which must be part of it), the oldest first. */
    function linksAfter(chain, ancestor = null) {
        const links = [];
        for (let at = chain; at !== ancestor && at; at = at.parent) links.push(at);
        return links.reverse();
    }

    // --- Documents

    let lastId = 0;
    const newId = () => ++lastId;

    /** Masks that are no strokes become the first operation; it stays their own mask until something is added. */
    function chainOf(mask) {
        if (mask?.kind === "strokes") return (mask.strokes ?? []).reduce(link, null);
        return {...link(null, {mask: mask ?? {}}), whole: true};
    }

    /** A layer: a concept's fields as they are (`fields`, without its mask) and the chain of its mask. */
    function layerOf(concept) {
        const {mask, ...fields} = concept;
        return {id: newId(), fields, chain: chainOf(mask)};
    }

    /** The document in a painting's JSON text; throws where it is none. */
    function parse(text) {
        const {concepts = [], ...rest} = JSON.parse(text || "{}");
        if (!Array.isArray(concepts)) throw new Error("concepts: expected a list");
        return {layers: concepts.map(layerOf), rest};
    }

    const EMPTY_MASK = '{"kind": "strokes", "strokes": []}';

    function maskText(chain) {
        if (!chain) return EMPTY_MASK;
        if (chain.whole) return JSON.stringify(chain.operation.mask);
        chain.masked ??= `{"kind": "strokes", "strokes": [${linksAfter(chain)
            .map((one) => one.text)
            .join(", ")}]}`;
        return chain.masked;
    }

    function layerText({fields, chain}) {
        const given = JSON.stringify(fields).slice(1, -1);
        return `{${given}${given && ", "}"mask": ${maskText(chain)}}`;
    }

    /** A document as a painting's JSON text. */
    function serialise({layers, rest}) {
        const others = JSON.stringify(rest).slice(1, -1);
        if (!layers.length) return `{${others}}`;
        return `{"concepts": [${layers.map(layerText).join(", ")}]${others && ", "}${others}}`;
    }

    /** The document with one layer's fields or chain changed. */
    function withLayer(document, id, change) {
        const layers = document.layers.map((layer) => (layer.id === id ? {...layer, ...change} : layer));
        return {...document, layers};
    }

    // --- History

    const COALESCE = 1000; // milliseconds in which changes of one kind are one step

    /** Documents in their order and which of them is now. */
    class History {
        constructor(document) {
            this.reset(document);
        }

        reset(document) {
            this.steps = [document];
            this.at = 0;
            this.kind = null;
        }

        get now() {
            return this.steps[this.at];
        }

        get canUndo() {
            return this.at > 0;
        }

        get canRedo() {
            return this.at < this.steps.length - 1;
        }

        /** A new step; one with the `kind` of the step before, and soon after it, takes that one's place. */
        push(document, kind = null) {
            const now = performance.now();
            const same = kind !== null && kind === this.kind && now - this.time < COALESCE && !this.canRedo;
            this.steps.length = this.at + 1;
            if (same) this.steps[this.at] = document;
            else this.at = this.steps.push(document) - 1;
            this.kind = kind;
            this.time = now;
        }

        undo() {
            if (this.canUndo) this.at--;
            this.kind = null;
        }

        redo() {
            if (this.canRedo) this.at++;
            this.kind = null;
        }
    }

    // --- Pictures

    class NotYet extends Error {}

    /** Decoded mask pictures by their data: brightness, or alpha where that carries the picture, as in the library. */
    class Pictures {
        constructor(onReady) {
            this.maps = new Map();
            this.onReady = onReady;
        }

        /** A picture's map; throws NotYet while it is being decoded (`onReady` follows) and Error where it cannot be. */
        get = (data) => {
            const found = this.maps.get(data);
            if (found instanceof Error) throw found;
            if (found) return found;
            this.maps.set(data, new NotYet("decoding"));
            this.load(data);
            throw this.maps.get(data);
        };

        async load(data) {
            try {
                const url = data.startsWith("data:") ? data : `data:image/png;base64,${data}`;
                this.maps.set(data, await decode(await (await fetch(url)).blob()));
            } catch {
                this.maps.set(data, new Error("a mask image cannot be decoded"));
            }
            this.onReady();
        }
    }

    /** A picture's pixels without any conversion of colours. */
    async function pixelsOf(blob) {
        const bitmap = await createImageBitmap(blob, {colorSpaceConversion: "none", premultiplyAlpha: "none"});
        const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
        const context = canvas.getContext("2d", {willReadFrequently: true});
        context.drawImage(bitmap, 0, 0);
        bitmap.close();
        return context.getImageData(0, 0, canvas.width, canvas.height);
    }

    async function decode(blob) {
        const {width, height, data} = await pixelsOf(blob);
        const map = newMap(width, height);
        const alpha = (i) => data[4 * i + 3];
        const brightness = (i) => (data[4 * i] * 19595 + data[4 * i + 1] * 38470 + data[4 * i + 2] * 7471 + 0x8000) >> 16;
        const range = (value) => {
            let [low, high] = [255, 0];
            for (let i = 0; i < map.data.length; i++) {
                low = Math.min(low, value(i));
                high = Math.max(high, value(i));
            }
            return [low, high];
        };
        const [[thin, thick], [dark, bright]] = [range(alpha), range(brightness)];
        const carries = thick > 0 && (thin === 0 || thick - thin > bright - dark) ? alpha : brightness;
        for (let i = 0; i < map.data.length; i++) map.data[i] = carries(i) / 255;
        return map;
    }

    // --- Maps of chains

    const CHECKPOINT = 64; // operations between maps kept while a long chain is drawn
    const MEMORY = 128 * 2 ** 20; // bytes of kept maps, beyond those of the layers themselves

    /** The maps of chains at one size. */
    class Rasters {
        constructor(width, height, pictures) {
            this.width = width;
            this.height = height;
            this.pictures = pictures;
            this.kept = new Map(); // chain → map, the least lately used first
        }

        /** A chain's map if it is at hand. */
        ready(chain) {
            if (!chain) return (this.empty ??= newMap(this.width, this.height));
            const map = this.kept.get(chain);
            if (map) {
                this.kept.delete(chain);
                this.kept.set(chain, map);
            }
            return map;
        }

        keep(chain, map) {
            this.kept.set(chain, map);
            const most = Math.max(Math.floor(MEMORY / map.data.byteLength), 40);
            for (const oldest of this.kept.keys()) {
                if (this.kept.size <= most) break;
                this.kept.delete(oldest);
            }
        }

        /** Draw a chain, pausing (yield) after each operation; returns its map. Throws NotYet where a picture lacks. */
        *draw(chain) {
            let start = chain;
            while (start && !this.kept.has(start)) start = start.parent;
            if (start === chain) return this.ready(chain);
            const map = copyMap(this.ready(start));
            for (const one of linksAfter(chain, start)) {
                apply(map, one.operation, this.pictures);
                if (one === chain) this.keep(one, map);
                else if (one.depth % CHECKPOINT === 0) this.keep(one, copyMap(map));
                yield;
            }
            return map;
        }
    }

    // --- Simplifying strokes

    /** Leave out points that lie within `tolerance` of the straight line between those kept (Douglas and Peucker 1973).
     *  `place` maps a point to coordinates in which the tolerance is measured. */
    function simplify(points, tolerance, place) {
        if (points.length < 3) return points;
        const places = points.map(place);
        const keep = new Uint8Array(points.length);
        keep[0] = keep[points.length - 1] = 1;
        const spans = [[0, points.length - 1]];
        while (spans.length) {
            const [first, last] = spans.pop();
            let [worst, at] = [tolerance, -1];
            for (let i = first + 1; i < last; i++) {
                const d = segmentDistance(places[i], places[first], places[last]);
                if (d > worst) [worst, at] = [d, i];
            }
            if (at < 0) continue;
            keep[at] = 1;
            spans.push([first, at], [at, last]);
        }
        return points.filter((_, i) => keep[i]);
    }

    function segmentDistance(p, a, b) {
        const along = b.map((v, k) => v - a[k]);
        const squared = along.reduce((sum, v) => sum + v * v, 0);
        const dot = along.reduce((sum, v, k) => sum + v * (p[k] - a[k]), 0);
        const t = squared > 0 ? Math.min(Math.max(dot / squared, 0), 1) : 0;
        return Math.hypot(...p.map((v, k) => v - a[k] - t * along[k]));
    }

    Object.assign(MaskNoise, {
        History,
        NotYet,
        Pictures,
        Rasters,
        layerOf,
        link,
        newId,
        parse,
        serialise,
        simplify,
        withLayer,
    });
})();
