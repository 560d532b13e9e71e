/*
 * What a painter can do to a document: commands, tools' settings, and the maps of all layers. Knows no page.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});
    const {History, Pictures, Rasters, layerOf, link, newId, operationsOf, parse, regions, serialise} = MaskNoise;
    const {withLayer, withOperation} = MaskNoise;

    const SIDES = [256, 1024]; // pixels: the longer side of the maps at least and at most
    const AT_ONCE = 24; // operations drawn without waiting for the next picture frame
    const BUDGET = 8; // milliseconds of drawing in one picture frame

    const LATELY = 4; // steps among which a text from outside is looked for

    const VIEW = {visible: true, locked: false, opacity: 0.65};

    /** `limits` are the library's; `onChange(what)` hears "document", "view", "tool" and "maps", `onStatus(text)` what
     *  a painter should know, `onError(text)` what went wrong. */
    class Editor {
        constructor({limits, onChange, onStatus, onError}) {
            this.limits = limits;
            this.onChange = onChange;
            this.onStatus = onStatus;
            this.onError = onError;
            this.history = new History({layers: [], rest: {}});
            this.activeId = null;
            this.picked = null; // the shape that was picked last: {id of its layer, at: its place in it}
            this.views = new Map();
            this.tool = {
                name: "brush",
                size: 0.06,
                hardness: 0.5,
                opacity: 1,
                flow: 1,
                pressure: true,
                gradient: "linear",
                erase: false,
            };
            this.pictures = new Pictures(() => this.onChange("maps"));
            this.jobs = new Map();
            this.setSize(512, 512);
        }

        // --- What there is

        get document() {
            return this.history.now;
        }

        get layers() {
            return this.document.layers;
        }

        get active() {
            return this.layers.find((layer) => layer.id === this.activeId) ?? null;
        }

        get text() {
            const {text, masks} = serialise(this.document, this.masks);
            this.masks = masks;
            return text;
        }

        view(layer) {
            if (!this.views.has(layer.id)) this.views.set(layer.id, {...VIEW});
            return this.views.get(layer.id);
        }

        /** The size of the picture in pixels; maps have its shape. */
        setSize(width, height) {
            if (width === this.width && height === this.height) return;
            [this.width, this.height] = [width, height];
            const longer = Math.max(width, height);
            const scale = Math.min(Math.max(longer, SIDES[0]), SIDES[1]) / longer;
            const size = [width, height].map((n) => Math.max(1, Math.round(n * scale)));
            this.rasters = new Rasters(...size, this.pictures.get);
            this.jobs.clear();
            this.settle();
            this.onChange("maps");
        }

        // --- Maps

        /** A layer's map, or null while it is being drawn (`pump` draws; "maps" is announced when one is done). */
        mapOf(layer) {
            const map = this.rasters.ready(layer.chain);
            if (map) return map;
            if (!this.jobs.has(layer.chain)) this.jobs.set(layer.chain, this.rasters.draw(layer.chain));
            this.advance(layer.chain, AT_ONCE);
            return this.rasters.ready(layer.chain) ?? null;
        }

        /** Draw some operations of a chain; returns whether it could go on. */
        advance(chain, count) {
            try {
                for (let i = 0; i < count && this.jobs.has(chain); i++) {
                    const {done, value} = this.jobs.get(chain).next();
                    if (value === "waiting") return false; // for a picture: "maps" is announced when it is there
                    if (done) this.jobs.delete(chain);
                }
            } catch (error) {
                this.jobs.delete(chain);
                this.fail(chain, error);
            }
            return true;
        }

        /** What cannot be drawn is shown empty, and said once. */
        fail(chain, error) {
            this.rasters.keep(chain, MaskNoise.raster.newMap(this.rasters.width, this.rasters.height));
            this.onError(`A mask cannot be shown: ${error.message}`);
        }

        /** Go on drawing for a moment; returns whether anything is left that waits for no picture. The active layer
         *  comes first. */
        pump() {
            const wanted = new Set(this.layers.map((layer) => layer.chain));
            for (const chain of this.jobs.keys()) if (!wanted.has(chain)) this.jobs.delete(chain);
            const ready = new Set(this.jobs.keys());
            const end = performance.now() + BUDGET;
            let finished = false;
            while (ready.size && performance.now() < end) {
                const first = ready.has(this.active?.chain) ? this.active.chain : ready.values().next().value;
                const moved = this.advance(first, 4);
                if (moved && this.jobs.has(first)) continue;
                ready.delete(first);
                finished ||= moved;
            }
            if (finished) this.onChange("maps");
            return ready.size > 0;
        }

        // --- Steps

        edit(document, kind = null) {
            this.history.push(document, kind);
            this.settle();
            this.onChange("document");
        }

        /** Replace everything by a painting's text, as one step that can be undone. Throws where it is none.
         *  What was there a few steps ago comes back as it was, with its layers' views. */
        load(text) {
            const lately = this.history.steps.slice(-LATELY).findLast((step) => serialise(step).text === text);
            this.history.push(lately ?? parse(text));
            this.settle();
            this.onChange("document");
        }

        /** Begin with a painting's text: nothing before it can be undone. Throws where it is none. */
        start(text) {
            this.history.reset(parse(text));
            this.settle();
        }

        settle() {
            this.rasters.shown = new Set(this.layers.map((layer) => layer.chain));
            if (!this.active) this.activeId = this.layers[0]?.id ?? null;
        }

        undo() {
            this.history.undo();
            this.settle();
            this.onChange("document");
        }

        redo() {
            this.history.redo();
            this.settle();
            this.onChange("document");
        }

        select(id) {
            this.activeId = id;
            this.onChange("view");
        }

        setView(layer, change) {
            Object.assign(this.view(layer), change);
            this.onChange("view");
        }

        setTool(change) {
            Object.assign(this.tool, change);
            this.onChange("tool");
        }

        // --- Concepts

        get full() {
            return this.layers.length >= this.limits.concepts;
        }

        /** Add concepts, given as in a scene, at the end; the first of them becomes the active one. */
        addConcepts(concepts) {
            const room = this.limits.concepts - this.layers.length;
            if (concepts.length > room) {
                this.onStatus(`There can be ${this.limits.concepts} concepts at most.`);
                return;
            }
            const added = concepts.map(layerOf);
            this.activeId = added[0].id;
            this.edit({...this.document, layers: [...this.layers, ...added]});
        }

        addConcept() {
            this.addConcepts([{prompt: "", mask: {kind: "strokes", strokes: []}}]);
        }

        /** What is painted before there is a concept belongs to the first one; returns whether it was made. */
        ensureConcept() {
            if (this.layers.length) return false;
            this.addConcept();
            this.onStatus("Concept 1 is new: say in its field what your mask should show.");
            return true;
        }

        /** Replace all concepts' masks by those of a split; concepts that lack are added, prompts are kept. */
        arrange(masks) {
            const layers = masks.map((mask, i) => {
                const {chain} = layerOf({mask});
                const old = this.layers[i];
                return old ? {...old, chain} : {id: newId(), fields: {prompt: ""}, chain};
            });
            this.edit({...this.document, layers: [...layers, ...this.layers.slice(masks.length)]});
        }

        /** A concept for each prompt, in their order: those that are there keep all else, and those too many go. Where
         *  nothing is painted yet they stand side by side. */
        setPrompts(prompts) {
            const most = this.limits.concepts;
            if (prompts.length > most) return this.onError(`There can be ${most} concepts at most, not ${prompts.length}.`);
            const blank = this.layers.every(({chain}) => !chain);
            const layers = prompts.map((prompt, i) => {
                const split = {kind: "split", axis: "x", from: i / prompts.length, to: (i + 1) / prompts.length};
                const {chain} = layerOf({mask: blank ? {...split, feather: 0.2} : {kind: "strokes", strokes: []}});
                const old = this.layers[i];
                const fields = {...old?.fields, prompt};
                return {id: old?.id ?? newId(), fields, chain: old && !blank ? old.chain : chain};
            });
            if (!layers.some(({id}) => id === this.activeId)) this.activeId = layers.at(-1)?.id ?? null;
            this.edit({...this.document, layers});
        }

        duplicate(layer) {
            if (this.full) return this.onStatus(`There can be ${this.limits.concepts} concepts at most.`);
            const copy = {...layer, id: newId()};
            this.views.set(copy.id, {...this.view(layer)});
            this.activeId = copy.id;
            const at = this.layers.indexOf(layer) + 1;
            this.edit({...this.document, layers: [...this.layers.slice(0, at), copy, ...this.layers.slice(at)]});
        }

        remove(layer) {
            const at = this.layers.indexOf(layer);
            const layers = this.layers.filter((one) => one !== layer);
            if (layer.id === this.activeId) this.activeId = (layers[at] ?? layers.at(-1))?.id ?? null;
            this.edit({...this.document, layers});
        }

        move(layer, by) {
            const from = this.layers.indexOf(layer);
            const to = from + by;
            if (to < 0 || to >= this.layers.length) return;
            const layers = [...this.layers];
            layers.splice(to, 0, ...layers.splice(from, 1));
            this.edit({...this.document, layers});
        }

        setField(layer, name, value) {
            const fields = {...layer.fields, [name]: value};
            this.edit(withLayer(this.document, layer.id, {fields}), `${layer.id} ${name}`);
        }

        // --- Painting

        /** Why the active layer cannot be changed; "" where it can. */
        get bar() {
            const layer = this.active;
            if (!layer) return "Add a concept to paint on.";
            if (this.view(layer).locked) return "This layer is locked.";
            if (!this.view(layer).visible) return "This layer is hidden.";
            return "";
        }

        /** Why the active layer cannot be painted on now; "" where it can. */
        get refusal() {
            return this.bar || (this.mapOf(this.active) ? "" : "This layer is still being drawn.");
        }

        allowed(refusal = this.refusal) {
            if (refusal) this.onStatus(refusal);
            return !refusal;
        }

        /** Add operations to the active layer as one step. */
        add(operations) {
            if (!operations.length || !this.allowed()) return;
            const chain = operations.reduce(link, this.active.chain);
            if (Object.entries(chain.amounts).some(([name, amount]) => amount > this.limits[name])) {
                this.onStatus("This layer is full: flatten it to go on painting.");
                return;
            }
            this.replaceChain(chain);
        }

        replaceChain(chain, kind = null) {
            this.edit(withLayer(this.document, this.activeId, {chain}), kind);
        }

        // --- Shapes that were drawn before

        /** A layer's shapes that can be moved, the oldest first: {at, mask}. */
        regionsOf(layer) {
            const all = operationsOf(layer.chain).map(({mask}, at) => ({at, mask}));
            return all.filter(({mask}) => regions.is(mask));
        }

        /** The shape of the active layer that the move tool holds, {at, mask}: the one picked, or the newest; or null. */
        get region() {
            if (this.tool.name !== "move" || !this.active) return null;
            const all = this.regionsOf(this.active);
            if (this.picked?.id !== this.activeId) return all.at(-1) ?? null;
            return all.find(({at}) => at === this.picked.at) ?? null;
        }

        /** Hold a shape of a layer, or with null none. */
        pick(layer, region) {
            this.activeId = layer?.id ?? this.activeId;
            this.picked = {id: this.activeId, at: region?.at ?? null};
            this.onChange("view");
        }

        pickNext() {
            const all = this.active ? this.regionsOf(this.active) : [];
            if (!all.length) return this.onStatus("There is no shape on this layer.");
            const now = all.findIndex(({at}) => at === this.region?.at);
            this.pick(this.active, all[(now + 1) % all.length]);
        }

        /** The active layer's chain with another mask for one of its shapes. */
        chainWith({at}, mask) {
            const {chain} = this.active;
            return withOperation(chain, at, {...operationsOf(chain)[at], mask});
        }

        /** Give the held shape another mask; changes of one `kind`, soon after each other, are one step. */
        changeRegion(mask, kind = null) {
            const {region} = this;
            if (region && this.allowed(this.bar))
                this.replaceChain(this.chainWith(region, mask), kind && `${kind} ${region.at}`);
        }

        removeRegion() {
            const {region, active} = this;
            if (region && this.allowed(this.bar)) this.replaceChain(withOperation(active.chain, region.at, null));
        }

        clear() {
            if (this.active?.chain && this.allowed()) this.replaceChain(null);
        }

        invert() {
            this.add([{filter: "invert"}]);
        }

        blur(amount) {
            this.add([{filter: "blur", amount}]);
        }

        /** Make the active layer's mask a picture: data is a PNG, JPEG or WebP image as a data URL. */
        setPicture(data) {
            if (this.active && this.allowed()) this.replaceChain(layerOf({mask: {kind: "image", data}}).chain);
        }

        /** Make a picture of all that was painted on the active layer. */
        flatten() {
            if (this.active?.chain && this.allowed()) this.setPicture(MaskNoise.pngOf(this.mapOf(this.active)));
        }

        fill(x, y, erase) {
            const map = this.mapOf(this.active);
            const region = MaskNoise.raster.flood(map, x, y);
            const data = MaskNoise.pngOf(region);
            const whole = region.data.every((value) => value === 1);
            const mask = whole ? {kind: "rect"} : {kind: "image", data};
            const operation = erase ? {mask, erase} : {mask};
            this.add([operation]);
        }

        get radius() {
            return this.tool.size / 2;
        }
    }

    /** A map as a grey PNG, a data URL; 8 bits a pixel. */
    function pngOf(map) {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [map.width, map.height];
        const context = canvas.getContext("2d");
        const pixels = context.createImageData(map.width, map.height);
        for (let i = 0; i < map.data.length; i++) {
            pixels.data.fill(Math.round(map.data[i] * 255), 4 * i, 4 * i + 3);
            pixels.data[4 * i + 3] = 255;
        }
        context.putImageData(pixels, 0, 0);
        return canvas.toDataURL("image/png");
    }

    Object.assign(MaskNoise, {Editor, pngOf});
})();
