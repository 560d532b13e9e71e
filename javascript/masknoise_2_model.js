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
    const {apply, complete, copyMap, newMap} = MaskNoise.raster;

    // --- Chains of operations

    /** What of an operation counts towards a scene's limits. */
    function amountsOf(operation) {
        const {points = [], radius, flow, mask, filter} = complete.stroke(operation);
        let length = 0;
        for (let i = 1; i < points.length && flow < 1; i++) {
            length += Math.hypot(points[i][0] - points[i - 1][0], points[i][1] - points[i - 1][1]);
        }
        return {
            strokes: 1,
            points: points.length,
            stamps: mask ? 1 : 0,
            filters: filter ? 1 : 0,
            flow: length / radius,
        };
    }

    /** The chain with one more operation. An empty chain is null. */
    function link(parent, operation) {
        const amounts = amountsOf(operation);
        for (const name in amounts) amounts[name] += parent?.amounts[name] ?? 0;
        return {parent, operation, depth: (parent?.depth ?? 0) + 1, amounts};
    }

    /** An operation's text, kept with its link; a picture's is as long as the picture, and made each time. */
    function textOf(one) {
        if (one.operation.mask?.data) return JSON.stringify(one.operation);
        return (one.text ??= JSON.stringify(one.operation));
    }

    /** The links of a chain after another one (which must be part of it), the oldest first. */
    function linksAfter(chain, ancestor = null) {
        const links = [];
        for (let at = chain; at !== ancestor && at; at = at.parent) links.push(at);
        return links.reverse();
    }

    /** A chain whose mask is no strokes: its own, until something is added. */
    const wholeChain = (mask) => ({...link(null, {mask}), whole: true});

    /** The chain with another operation in one place (0 is the oldest), or with none there. */
    function withOperation(chain, at, operation) {
        if (chain.whole) return operation && wholeChain(operation.mask);
        const links = linksAfter(chain);
        const before = links[at].parent;
        const start = operation ? link(before, operation) : before;
        return links.slice(at + 1).reduce((after, one) => link(after, one.operation), start);
    }

    /** A chain's operations, the oldest first. */
    const operationsOf = (chain) => linksAfter(chain).map((one) => one.operation);

    // --- Documents

    let lastId = 0;
    const newId = () => ++lastId;

    /** Masks that are no strokes become the first operation; it stays their own mask until something is added. */
    function chainOf(mask) {
        return mask?.kind === "strokes" ? (mask.strokes ?? []).reduce(link, null) : wholeChain(mask ?? {});
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
        return `{"kind": "strokes", "strokes": [${linksAfter(chain).map(textOf).join(", ")}]}`;
    }

    function layerText({fields, chain}, masks) {
        const given = JSON.stringify(fields).slice(1, -1);
        return `{${given}${given && ", "}"mask": ${masks.get(chain)}}`;
    }

    /** A document as a painting's JSON text, `text`, and its masks' by their chains, `masks`: those of the document
     *  before need not be made again. (Kept with the chains, each step of the history would hold all its text.) */
    function serialise({layers, rest}, known = new Map()) {
        const masks = new Map(layers.map(({chain}) => [chain, known.get(chain) ?? maskText(chain)]));
        const others = JSON.stringify(rest).slice(1, -1);
        const concepts = layers.map((layer) => layerText(layer, masks)).join(", ");
        const text = layers.length ? `{"concepts": [${concepts}]${others && ", "}${others}}` : `{${others}}`;
        return {text, masks};
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

    /** What is kept of decoded pictures: so many bytes, but as many as the layers may be waiting for at a time. */
    const PICTURES = {bytes: 24 * 2 ** 20, least: 16};

    /** Decoded mask pictures by their data: brightness, or alpha where that carries the picture, as in the library. The
     *  least lately used are forgotten beyond PICTURES, and decoded again when they are asked for. */
    class Pictures {
        constructor(onReady) {
            this.maps = new Map(); // data, and colour → map or Error, the least lately used first
            this.onReady = onReady;
        }

        /** A picture's map; throws NotYet while it is being decoded (`onReady` follows) and Error where it cannot be. */
        get = (data, {colour = "", tolerance} = {}) => {
            const key = colour ? `${colour} ${tolerance} ${data}` : data;
            const found = this.maps.get(key) ?? this.begin(key, data, colour, tolerance);
            this.keep(key, found);
            if (found instanceof Error) throw found;
            return found;
        };

        begin(...wanted) {
            this.load(...wanted);
            return new NotYet("decoding");
        }

        async load(key, data, colour, tolerance) {
            try {
                const {mapOf} = MaskNoise.colours;
                if (colour) this.keep(key, mapOf(await this.unmixed(data, tolerance), colour, tolerance));
                else this.keep(key, carried(await pixelsOf(data)));
            } catch {
                this.keep(key, new Error("a mask image cannot be decoded"));
            }
            this.onReady();
        }

        /** A colour-coded picture's shares; the last one is kept, as its colours are asked for one after the other. */
        unmixed(data, tolerance) {
            if (this.last?.data !== data || this.last.tolerance !== tolerance) {
                const shares = pixelsOf(data).then((pixels) => MaskNoise.colours.unmix(pixels, tolerance));
                this.last = {data, tolerance, shares};
            }
            return this.last.shares;
        }

        keep(key, found) {
            this.maps.delete(key);
            this.maps.set(key, found);
            for (const oldest of this.maps.keys()) {
                if (this.bytes <= PICTURES.bytes || this.maps.size <= PICTURES.least) break;
                this.maps.delete(oldest);
            }
        }

        get bytes() {
            return [...this.maps.values()].reduce((sum, {data}) => sum + (data?.byteLength ?? 0), 0);
        }
    }

    /** The pixels of a picture, a data URL or base64, without any conversion of colours. */
    async function pixelsOf(data) {
        const url = data.startsWith("data:") ? data : `data:image/png;base64,${data}`;
        const blob = await (await fetch(url)).blob();
        const bitmap = await createImageBitmap(blob, {colorSpaceConversion: "none", premultiplyAlpha: "none"});
        const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
        const context = canvas.getContext("2d", {willReadFrequently: true});
        context.drawImage(bitmap, 0, 0);
        bitmap.close();
        return context.getImageData(0, 0, canvas.width, canvas.height);
    }

    /** A picture as {width, height, data}: a byte a pixel, 255 where the mask is full. */
    function carried({width, height, data}) {
        const bytes = new Uint8Array(width * height);
        const alpha = (i) => data[4 * i + 3];
        const brightness = (i) =>
            (data[4 * i] * 19595 + data[4 * i + 1] * 38470 + data[4 * i + 2] * 7471 + 0x8000) >> 16;
        const range = (value) => {
            let [low, high] = [255, 0];
            for (let i = 0; i < bytes.length; i++) {
                low = Math.min(low, value(i));
                high = Math.max(high, value(i));
            }
            return [low, high];
        };
        const [[thin, thick], [dark, bright]] = [range(alpha), range(brightness)];
        const carries = thick > 0 && (thin === 0 || thick - thin > bright - dark) ? alpha : brightness;
        for (let i = 0; i < bytes.length; i++) bytes[i] = carries(i);
        return {width, height, data: bytes};
    }

    // --- Maps of chains

    const CHECKPOINT = 64; // operations between maps kept while a long chain is drawn
    const MEMORY = 48 * 2 ** 20; // bytes of kept maps, beyond those of the layers themselves

    /** The maps of chains at one size. */
    class Rasters {
        constructor(width, height, pictures) {
            this.width = width;
            this.height = height;
            this.pictures = pictures;
            this.kept = new Map(); // chain → map, the least lately used first
            this.shown = new Set(); // the layers' own chains
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
            const most = this.shown.size + Math.floor(MEMORY / map.data.byteLength);
            for (const oldest of this.kept.keys()) {
                if (this.kept.size <= most) break;
                if (oldest !== chain && !this.shown.has(oldest)) this.kept.delete(oldest);
            }
        }

        /** Draw a chain, pausing (yield) after each operation; returns its map. Where a picture is not there yet, it
         *  yields "waiting" and tries again when it goes on. */
        *draw(chain) {
            let start = chain;
            while (start && !this.kept.has(start)) start = start.parent;
            if (start === chain) return this.ready(chain);
            const map = copyMap(this.ready(start));
            for (const one of linksAfter(chain, start)) {
                while (!this.applied(map, one.operation)) yield "waiting";
                if (one === chain) this.keep(one, map);
                else if (one.depth % CHECKPOINT === 0) this.keep(one, copyMap(map));
                yield;
            }
            return map;
        }

        applied(map, operation) {
            try {
                apply(map, operation, this.pictures);
                return true;
            } catch (error) {
                if (error instanceof NotYet) return false;
                throw error;
            }
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
        Pictures,
        Rasters,
        layerOf,
        link,
        newId,
        operationsOf,
        parse,
        segmentDistance,
        serialise,
        simplify,
        withLayer,
        withOperation,
    });
})();
