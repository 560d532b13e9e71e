/*
 * Everything around the stage: tools, layer actions, the list of concepts, the help line. Builds its own elements.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});

    // --- Elements

    /** An element: properties, `on…` listeners, `aria…`/`data…` attributes, children. */
    function element(tag, properties = {}, ...children) {
        const node = document.createElement(tag);
        for (const [name, value] of Object.entries(properties)) {
            if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
            else if (name.includes("-") || name === "role" || name === "for") node.setAttribute(name, value);
            else node[name] = value;
        }
        node.append(...children.filter((child) => child !== null));
        return node;
    }

    /** Line drawings on a 24 × 24 grid. */
    const ICONS = {
        brush: "M4 20c3 0 5-1 5-4a2.5 2.5 0 0 0-5 0c0 2-1 3-2 3 .5.7 1.200 1 2 1zM9 14 20 3l1 1-11 11",
        eraser: "M9 20h12M5 14l8-9 7 6-8 9H9zM9 10l7 6",
        fill: "M4 12 11 5l8 8-7 6zM11 5 8 2M21 15c0 0-2 2.500-2 4a2 2 0 0 0 4 0c0-1.500-2-4-2-4z",
        line: "M4 20 20 4",
        rect: "M4 6h16v12H4z",
        ellipse: "M12 5c5 0 9 3 9 7s-4 7-9 7-9-3-9-7 4-7 9-7z",
        gradient: "M3 5h18v14H3zM7 5v14M10 5v14M12.500 5v14",
        undo: "M9 14 4 9l5-5M4 9h10a6 6 0 0 1 0 12h-3",
        redo: "M15 14l5-5-5-5M20 9H10a6 6 0 0 0 0 12h3",
        eye: "M2 12c3-5 6-7 10-7s7 2 10 7c-3 5-6 7-10 7s-7-2-10-7zM12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6z",
        hidden: "M2 12c3-5 6-7 10-7s7 2 10 7c-3 5-6 7-10 7s-7-2-10-7zM4 21 20 3",
        lock: "M6 11h12v9H6zM8 11V8a4 4 0 0 1 8 0v3",
        unlock: "M6 11h12v9H6zM8 11V7a4 4 0 0 1 7.500-2",
        up: "M12 19V5M6 11l6-6 6 6",
        down: "M12 5v14M6 13l6 6 6-6",
        copy: "M8 8h12v12H8zM16 8V4H4v12h4",
        remove: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
        add: "M12 5v14M5 12h14",
        fit: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
        plus: "M5 12h14M12 5v14",
        minus: "M5 12h14",
    };

    const SVG = "http://www.w3.org/2000/svg";

    function icon(name) {
        const svg = document.createElementNS(SVG, "svg");
        svg.setAttribute("viewBox", "0 0 24 24");
        svg.setAttribute("aria-hidden", "true");
        const path = document.createElementNS(SVG, "path");
        path.setAttribute("d", ICONS[name]);
        svg.append(path);
        return svg;
    }

    /** A button with a picture; its name is its tooltip and what a screen reader says. */
    function iconButton(name, label, onclick, shortcut = "") {
        const title = shortcut ? `${label} (${shortcut})` : label;
        const properties = {type: "button", className: "mn-button mn-icon", title, "aria-label": label, onclick};
        return element("button", properties, icon(name));
    }

    const textButton = (label, title, onclick) =>
        element("button", {type: "button", className: "mn-button", title, onclick}, label);

    function setIcon(button, name, label) {
        if (button.title === label) return;
        button.replaceChildren(icon(name));
        button.title = label;
        button.setAttribute("aria-label", label);
    }

    /** A slider with its name and value; `shown(value)` is its text. */
    function slider(label, {min, max, step, shown, oninput}) {
        const output = element("output", {className: "mn-value"});
        const input = element("input", {
            type: "range",
            min,
            max,
            step,
            "aria-label": label,
            oninput: () => {
                oninput(Number(input.value));
                output.value = shown(Number(input.value));
            },
        });
        const node = element("label", {className: "mn-slider"}, element("span", {}, label), input, output);
        const set = (value) => {
            input.value = value;
            output.value = shown(value);
        };
        return {node, set};
    }

    function checkbox(label, title, onchange) {
        const input = element("input", {type: "checkbox", onchange: () => onchange(input.checked)});
        return {input, node: element("label", {className: "mn-check", title}, input, label)};
    }

    const percent = (value) => `${Math.round(value * 100)} %`;

    // --- Tools

    const TOOLS = [
        ["brush", "Brush", "B"],
        ["eraser", "Eraser", "E"],
        ["fill", "Fill", "F"],
        ["line", "Line", "L"],
        ["rect", "Rectangle", "R"],
        ["ellipse", "Ellipse", "O"],
        ["gradient", "Gradient", "G"],
    ];

    /** Brush sizes are set on a scale on which every step is a third more. */
    const SIZES = {toSlider: (size) => Math.log(size), fromSlider: (value) => Math.exp(value), low: 0.002, high: 1};

    class Toolbar {
        constructor(panel) {
            const {editor} = panel;
            this.editor = editor;
            this.buttons = new Map();
            const tools = element("div", {className: "mn-group", role: "group", "aria-label": "Tools"});
            for (const [name, label, key] of TOOLS) {
                const button = iconButton(name, label, () => editor.setTool({name}), key);
                this.buttons.set(name, button);
                tools.append(button);
            }
            this.gradient = this.choice("Gradient shape", ["linear", "radial"], (gradient) => editor.setTool({gradient}));
            this.erase = checkbox("Subtract", "Tools take away instead of adding (X, or hold Alt)", (erase) =>
                editor.setTool({erase}),
            );
            this.pressure = checkbox("Pen pressure", "A pen's pressure sets the brush's width", (pressure) =>
                editor.setTool({pressure}),
            );
            this.sliders = this.makeSliders(editor);
            this.undo = iconButton("undo", "Undo", () => editor.undo(), "Ctrl+Z");
            this.redo = iconButton("redo", "Redo", () => editor.redo(), "Ctrl+Shift+Z");
            const steps = element("div", {className: "mn-group"}, this.undo, this.redo);
            this.node = element(
                "div",
                {className: "mn-toolbar", role: "toolbar", "aria-label": "Painting tools"},
                tools,
                steps,
                element("div", {className: "mn-sliders"}, ...Object.values(this.sliders).map((one) => one.node)),
                element("div", {className: "mn-group"}, this.gradient, this.erase.node, this.pressure.node),
            );
        }

        makeSliders(editor) {
            const fraction = (name, low = 0) => ({
                min: low,
                max: 1,
                step: 0.01,
                shown: percent,
                oninput: (value) => editor.setTool({[name]: value}),
            });
            return {
                size: slider("Size", {
                    min: SIZES.toSlider(SIZES.low),
                    max: SIZES.toSlider(SIZES.high),
                    step: 0.01,
                    shown: (value) => `${Math.max(1, Math.round(SIZES.fromSlider(value) * this.pixels()))} px`,
                    oninput: (value) => editor.setTool({size: SIZES.fromSlider(value)}),
                }),
                hardness: slider("Hardness", fraction("hardness")),
                opacity: slider("Opacity", fraction("opacity", 0.01)),
                flow: slider("Flow", fraction("flow", 0.01)),
            };
        }

        pixels() {
            return Math.min(this.editor.width, this.editor.height);
        }

        choice(label, names, onchange) {
            const options = names.map((name) => element("option", {value: name}, name));
            const properties = {className: "mn-select", "aria-label": label, title: label};
            return element("select", {...properties, onchange: (event) => onchange(event.target.value)}, ...options);
        }

        update() {
            const {tool, history} = this.editor;
            for (const [name, button] of this.buttons) button.setAttribute("aria-pressed", String(name === tool.name));
            this.sliders.size.set(SIZES.toSlider(tool.size));
            for (const name of ["hardness", "opacity", "flow"]) this.sliders[name].set(tool[name]);
            this.gradient.value = tool.gradient;
            this.gradient.hidden = tool.name !== "gradient";
            this.erase.input.checked = tool.erase;
            this.pressure.input.checked = tool.pressure;
            this.undo.disabled = !history.canUndo;
            this.redo.disabled = !history.canRedo;
        }
    }

    // --- Concepts

    /** One concept's card in the list. */
    class Card {
        constructor(panel, layer) {
            this.panel = panel;
            this.id = layer.id;
            const {editor} = panel;
            const now = () => editor.layers.find((one) => one.id === this.id);
            const view = (change) => editor.setView(now(), change);
            this.swatch = element("button", {
                type: "button",
                className: "mn-swatch",
                onclick: () => editor.select(this.id),
            });
            this.prompt = this.text("Prompt", "what this mask should show", 2, (value) => editor.setField(now(), "prompt", value));
            this.negative = this.text("Negative prompt", "what to avoid here (optional)", 1, (value) =>
                editor.setField(now(), "negative", value),
            );
            this.tokens = element("span", {className: "mn-tokens", title: "Tokens used, of those the model reads at once"});
            const {low, high, step} = panel.weight;
            this.weight = slider("Weight", {
                min: low,
                max: high,
                step,
                shown: (value) => value.toFixed(2),
                oninput: (value) => editor.setField(now(), "weight", value),
            });
            this.opacity = slider("Shown", {min: 0.1, max: 1, step: 0.05, shown: percent, oninput: (opacity) => view({opacity})});
            this.opacity.node.title = "How strongly the layer is shown here; changes no image";
            this.eye = iconButton("eye", "Hide", () => view({visible: !editor.view(now()).visible}));
            this.lock = iconButton("unlock", "Lock", () => view({locked: !editor.view(now()).locked}));
            this.up = iconButton("up", "Move up", () => editor.move(now(), -1));
            this.down = iconButton("down", "Move down", () => editor.move(now(), 1));
            const copy = iconButton("copy", "Duplicate", () => editor.duplicate(now()));
            const remove = iconButton("remove", "Remove", () => editor.remove(now()));
            this.notes = element("p", {className: "mn-notes"});
            const actions = [this.eye, this.lock, this.up, this.down, copy, remove];
            this.title = element("span", {className: "mn-title"});
            this.node = element(
                "li",
                {className: "mn-card", onfocusin: () => editor.activeId !== this.id && editor.select(this.id)},
                element(
                    "div",
                    {className: "mn-card-head"},
                    this.swatch,
                    this.title,
                    this.tokens,
                    element("div", {className: "mn-group"}, ...actions),
                ),
                this.prompt,
                this.negative,
                element("div", {className: "mn-sliders"}, this.weight.node, this.opacity.node),
                this.notes,
            );
            this.node.addEventListener("pointerdown", () => editor.activeId !== this.id && editor.select(this.id));
        }

        text(label, placeholder, rows, oninput) {
            const field = element("textarea", {
                className: "mn-text",
                rows,
                placeholder,
                "aria-label": label,
                oninput: () => oninput(field.value),
            });
            return field;
        }

        update(layer, i, count) {
            const {editor, colours, tokens} = this.panel;
            const {fields} = layer;
            const view = editor.view(layer);
            const name = fields.prompt || `concept ${i + 1}`;
            const active = layer.id === editor.activeId;
            this.node.classList.toggle("mn-active", active);
            this.node.classList.toggle("mn-off", !view.visible);
            this.swatch.style.background = colours[i % colours.length];
            this.swatch.setAttribute("aria-label", `Paint ${name}`);
            this.swatch.setAttribute("aria-pressed", String(active));
            this.swatch.title = "Paint on this layer";
            this.title.textContent = `Concept ${i + 1}`;
            setValue(this.prompt, fields.prompt ?? "");
            setValue(this.negative, fields.negative ?? "");
            this.prompt.setAttribute("aria-label", `Prompt of concept ${i + 1}`);
            this.negative.setAttribute("aria-label", `Negative prompt of concept ${i + 1}`);
            this.weight.set(fields.weight ?? this.panel.weight.usual);
            this.opacity.set(view.opacity);
            setIcon(this.eye, view.visible ? "eye" : "hidden", view.visible ? "Hide" : "Show");
            this.eye.setAttribute("aria-pressed", String(!view.visible));
            setIcon(this.lock, view.locked ? "lock" : "unlock", view.locked ? "Unlock" : "Lock");
            this.lock.setAttribute("aria-pressed", String(view.locked));
            this.up.disabled = i === 0;
            this.down.disabled = i === count - 1;
            this.tokens.textContent = tokens[fields.prompt ?? ""] ?? "";
            const keyed = fields.keyframes?.length ?? 0;
            this.notes.textContent = keyed ? `Has ${keyed} keyframes: they are kept; the canvas shows the mask outside them.` : "";
        }
    }

    /** A text field's value, left alone while it says the same: the caret stays. */
    function setValue(field, value) {
        if (field.value !== value) field.value = value;
    }

    const strip = (axis, i, n, feather) => ({kind: "split", axis, from: i / n, to: (i + 1) / n, feather});

    /** Splits as starting points: names and their masks. */
    const SPLITS = {
        "halves, side by side": () => [0, 1].map((i) => strip("x", i, 2, 0.2)),
        "halves, above each other": () => [0, 1].map((i) => strip("y", i, 2, 0.2)),
        "thirds, side by side": () => [0, 1, 2].map((i) => strip("x", i, 3, 0.15)),
        "thirds, above each other": () => [0, 1, 2].map((i) => strip("y", i, 3, 0.15)),
        "grid of four": () => [0, 1, 2, 3].map((i) => cell(i % 2, Math.floor(i / 2), 2)),
        "grid of nine": () => [...Array(9).keys()].map((i) => cell(i % 3, Math.floor(i / 3), 3)),
        "middle and surroundings": () => {
            const ellipse = {kind: "ellipse", rx: 0.3, ry: 0.3, feather: 0.2};
            return [ellipse, {kind: "strokes", strokes: [{mask: ellipse}, {filter: "invert"}]}];
        },
    };

    function cell(column, row, n) {
        const [left, top, right, bottom] = [column / n, row / n, (column + 1) / n, (row + 1) / n];
        return {kind: "rect", left, top, right, bottom, feather: 0.12};
    }

    class ConceptList {
        constructor(panel) {
            this.panel = panel;
            const {editor} = panel;
            this.cards = new Map();
            this.list = element("ol", {className: "mn-cards", "aria-label": "Concepts"});
            this.add = textButton("Add concept", "A new concept with an empty mask", () => this.addConcept());
            this.add.classList.add("mn-primary");
            const options = Object.keys(SPLITS).map((name) => element("option", {value: name}, name));
            this.splits = element(
                "select",
                {
                    className: "mn-select",
                    "aria-label": "Start from a split",
                    title: "Divide the picture among the concepts; their masks are replaced, prompts are kept",
                    onchange: () => {
                        editor.arrange(SPLITS[this.splits.value]());
                        this.splits.value = "";
                    },
                },
                element("option", {value: ""}, "Start from a split…"),
                ...options,
            );
            this.empty = element(
                "p",
                {className: "mn-empty"},
                "No concepts yet: the whole picture follows the image's own prompt. Add a concept, say what it should show, and paint where.",
            );
            this.node = element(
                "div",
                {className: "mn-concepts"},
                element("div", {className: "mn-group"}, this.add, this.splits),
                this.empty,
                this.list,
            );
        }

        addConcept() {
            this.panel.editor.addConcept();
            this.cards.get(this.panel.editor.activeId)?.prompt.focus();
        }

        update() {
            const {editor} = this.panel;
            const {layers} = editor;
            const ids = new Set(layers.map((layer) => layer.id));
            for (const [id, card] of this.cards) {
                if (ids.has(id)) continue;
                card.node.remove();
                this.cards.delete(id);
            }
            layers.forEach((layer, i) => {
                if (!this.cards.has(layer.id)) this.cards.set(layer.id, new Card(this.panel, layer));
                const {node} = this.cards.get(layer.id);
                if (this.list.children[i] !== node) this.list.insertBefore(node, this.list.children[i] ?? null);
                this.cards.get(layer.id).update(layer, i, layers.length);
            });
            this.empty.hidden = layers.length > 0;
            this.add.disabled = editor.full;
        }
    }

    // --- The panel

    const HELP =
        "B brush · E eraser · F fill · L line · R rectangle · O ellipse · G gradient · X subtract · [ ] size · " +
        "Shift constrains · Ctrl+Z undo · Ctrl+Shift+Z redo · Space pans · Ctrl+wheel zooms · 0 fits · " +
        "arrow keys and Enter paint without a mouse";

    const ACCEPT = "image/png,image/jpeg,image/webp";
    const LARGEST_FILE = 2 * 2 ** 20; // bytes kept as they are; larger pictures become grey and smaller
    const LARGEST_SIDE = 1024;

    class Panel {
        /** `root` is filled. config: colours, weight {low, high, step, usual}, limits, defaults; `lastImage()` gives the last generated
         *  picture's address or null. */
        constructor(root, {config, onEdit, onViewChange, lastImage}) {
            MaskNoise.raster.useDefaults(config.defaults);
            this.root = root;
            this.colours = config.colours;
            this.weight = config.weight;
            this.lastImage = lastImage;
            this.onViewChange = onViewChange;
            this.following = false;
            this.tokens = {};
            this.status = element("p", {className: "mn-status", role: "status"});
            this.editor = new MaskNoise.Editor({
                limits: config.limits,
                onStatus: (text) => this.say(text),
                onChange: (what) => {
                    this.update(what);
                    if (what === "document") onEdit(this.editor.history.kind !== null);
                    if (what === "view" || what === "tool") onViewChange();
                },
            });
            this.canvas = element("canvas", {
                className: "mn-canvas",
                tabIndex: 0,
                role: "application",
                "aria-label": "Painting canvas. Arrow keys move the brush, Enter paints a dab, Shift+Enter a line.",
            });
            this.stage = new MaskNoise.Stage(this.editor, {canvas: this.canvas, colours: this.colours});
            this.toolbar = new Toolbar(this);
            this.list = new ConceptList(this);
            this.build();
            this.listen();
            this.update("document");
        }

        build() {
            const stageBox = element("div", {className: "mn-stage"}, this.canvas, this.zoomButtons());
            this.root.replaceChildren(
                this.toolbar.node,
                element(
                    "div",
                    {className: "mn-main"},
                    element("div", {className: "mn-left"}, stageBox, this.layerActions(), this.backdropActions(), this.status),
                    this.list.node,
                ),
                element("p", {className: "mn-help"}, HELP),
            );
        }

        zoomButtons() {
            return element(
                "div",
                {className: "mn-zoom", role: "group", "aria-label": "Zoom"},
                iconButton("minus", "Zoom out", () => this.stage.zoomBy(0.8), "−"),
                iconButton("fit", "Fit the picture", () => this.stage.fit(), "0"),
                iconButton("plus", "Zoom in", () => this.stage.zoomBy(1.25), "+"),
            );
        }

        layerActions() {
            const {editor} = this;
            this.softness = element("input", {
                className: "mn-number",
                type: "number",
                min: 1,
                max: 100,
                step: 1,
                value: 5,
                "aria-label": "Blur width in percent of the shorter side",
                title: "Blur width, in percent of the picture's shorter side",
            });
            const amount = () => Math.min(Math.max(Number(this.softness.value) || 5, 0.1), 100) / 100;
            this.layerButtons = [
                textButton("Clear", "Empty the active layer (Delete)", () => editor.clear()),
                textButton("Invert", "Swap what is covered and what is not (I)", () => editor.invert()),
                textButton("Blur", "Soften everything on the layer so far", () => editor.blur(amount())),
                this.softness,
                textButton("Flatten", "Turn the layer into one picture, which frees it of its strokes", () => editor.flatten()),
                textButton("Import mask", "Use a picture as the layer's mask; also by drop or paste", () => this.pick((file) => this.importMask(file))),
                textButton("Export mask", "Save the layer's mask as a PNG of the picture's size", () => this.exportMask()),
            ];
            return element("div", {className: "mn-group", role: "group", "aria-label": "Active layer"}, ...this.layerButtons);
        }

        backdropActions() {
            const {stage} = this;
            this.backdropSlider = slider("Backdrop", {
                min: 0,
                max: 1,
                step: 0.05,
                shown: percent,
                oninput: (value) => {
                    stage.backdropOpacity = value;
                    stage.update();
                },
            });
            this.backdropSlider.set(stage.backdropOpacity);
            const follow = checkbox("Follow", "Show each new image behind the masks as it comes", (on) => this.follow(on));
            this.followBox = follow.input;
            return element(
                "div",
                {className: "mn-group", role: "group", "aria-label": "Backdrop"},
                textButton("Last image", "Show the last generated image behind the masks", () => this.useLastImage()),
                follow.node,
                textButton("Open backdrop", "Show any picture behind the masks; also by Shift and drop", () => this.pick((file) => this.setBackdropFile(file))),
                textButton("No backdrop", "Remove the picture behind the masks", () => this.noBackdrop()),
                this.backdropSlider.node,
            );
        }

        say(text) {
            this.status.textContent = text;
            clearTimeout(this.saying);
            this.saying = setTimeout(() => (this.status.textContent = ""), 8000);
        }

        update(what) {
            if (!this.list) return; // still being built
            if (what === "maps") return this.stage.update(true);
            if (what !== "tool") this.list.update();
            this.toolbar.update();
            this.stage.update(true);
            for (const button of this.layerButtons) button.disabled = !this.editor.active;
        }

        setSize(width, height) {
            this.editor.setSize(width, height);
            this.canvas.parentElement.style.setProperty("--mn-aspect", `${width} / ${height}`);
            this.toolbar.update();
        }

        setTokens(tokens) {
            this.tokens = tokens;
            this.list.update();
        }

        // --- Pictures in and out

        pick(use) {
            const input = element("input", {type: "file", accept: ACCEPT, onchange: () => input.files[0] && use(input.files[0])});
            input.click();
        }

        async importMask(file) {
            this.editor.ensureConcept();
            if (!this.editor.allowed()) return;
            try {
                (await createImageBitmap(file)).close(); // refuses what is no picture, whatever its name says
                const small = file.size <= LARGEST_FILE && ACCEPT.includes(file.type);
                this.editor.setPicture(small ? await dataUrl(file) : await this.shrunk(file));
                this.say(small ? "Mask imported." : "Mask imported, made smaller to fit.");
            } catch {
                this.say(`${file.name || "That"} is not a picture this browser can read.`);
            }
        }

        /** A large picture, or one of another format, as a grey PNG of at most LARGEST_SIDE pixels. */
        async shrunk(file) {
            const bitmap = await createImageBitmap(file);
            const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
            const canvas = element("canvas", {
                width: Math.max(1, Math.round(bitmap.width * scale)),
                height: Math.max(1, Math.round(bitmap.height * scale)),
            });
            canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
            return canvas.toDataURL("image/png");
        }

        exportMask() {
            const layer = this.editor.active;
            const map = layer && this.editor.mapOf(layer);
            if (!map) return this.say(this.editor.refusal);
            const {width, height} = this.editor;
            const href = MaskNoise.pngOf(MaskNoise.raster.resize(map, width, height));
            const name = (layer.fields.prompt || "mask").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40);
            element("a", {href, download: `${name}.png`}).click();
        }

        /** Show the picture at an address, or none; of several asked for, the last. */
        async setBackdrop(url) {
            this.wanted = url;
            const image = url ? Object.assign(new Image(), {src: url}) : null;
            try {
                await image?.decode();
                if (this.wanted !== url) return;
                this.stage.backdrop = image;
                this.stage.update();
            } catch {
                if (this.wanted === url) this.say("That picture cannot be shown.");
            }
        }

        noBackdrop() {
            this.follow(false);
            this.setBackdrop(null);
        }

        /** Whether each new image becomes the backdrop (`lookForImage` is called now and then). */
        follow(on) {
            this.following = this.followBox.checked = on;
            this.onViewChange();
            this.lookForImage();
        }

        lookForImage() {
            const url = this.following ? this.lastImage() : null;
            if (url && url !== this.wanted) this.setBackdrop(url);
        }

        async setBackdropFile(file) {
            this.follow(false);
            const url = URL.createObjectURL(file);
            await this.setBackdrop(url);
            URL.revokeObjectURL(url); // what is decoded stays with its picture
        }

        useLastImage() {
            const url = this.lastImage();
            if (url) this.setBackdrop(url);
            else this.say("There is no generated image yet.");
        }

        // --- Keys, drop and paste

        listen() {
            this.root.addEventListener("keydown", (event) => this.key(event));
            this.canvas.addEventListener("keyup", (event) => event.code === "Space" && this.pan(false));
            this.canvas.addEventListener("blur", () => this.pan(false));
            this.root.addEventListener("dragover", (event) => event.preventDefault());
            this.root.addEventListener("drop", (event) => this.drop(event));
            this.onPaste = (event) => this.paste(event);
            document.addEventListener("paste", this.onPaste);
        }

        /** The page has taken the canvas away. */
        close() {
            document.removeEventListener("paste", this.onPaste);
        }

        pan(on) {
            this.stage.panning = on;
            this.canvas.classList.toggle("mn-panning", on);
            this.stage.update();
        }

        key(event) {
            const typing = event.target.matches("textarea, input[type=number], select");
            const command = event.ctrlKey || event.metaKey;
            if (typing || event.altKey) return;
            const action = command ? this.commandOf(event) : this.keyAction(event);
            if (!action) return;
            event.preventDefault();
            event.stopPropagation(); // hosts have shortcuts of their own
            action();
        }

        commandOf(event) {
            const key = event.key.toLowerCase();
            if (key === "z") return () => (event.shiftKey ? this.editor.redo() : this.editor.undo());
            if (key === "y") return () => this.editor.redo();
            return null;
        }

        keyAction(event) {
            const {editor} = this;
            const tool = TOOLS.find(([, , key]) => key.toLowerCase() === event.key.toLowerCase());
            if (tool) return () => editor.setTool({name: tool[0]});
            const resize = (factor) => () =>
                editor.setTool({size: MaskNoise.raster.clamp(editor.tool.size * factor, SIZES.low, SIZES.high)});
            const keys = {
                "[": resize(1 / 1.2),
                "]": resize(1.2),
                x: () => editor.setTool({erase: !editor.tool.erase}),
            };
            return keys[event.key] ?? (event.target === this.canvas ? this.canvasAction(event) : null);
        }

        /** Keys that mean something else on a button or a slider, and those that change what is painted. */
        canvasAction(event) {
            const {editor, stage} = this;
            const step = event.shiftKey ? 0.1 : 0.02;
            const keys = {
                i: () => editor.invert(),
                Delete: () => editor.clear(),
                " ": () => this.pan(true),
                0: () => stage.fit(),
                "+": () => stage.zoomBy(1.25),
                "=": () => stage.zoomBy(1.25),
                "-": () => stage.zoomBy(0.8),
                ArrowLeft: () => stage.nudge(-step, 0),
                ArrowRight: () => stage.nudge(step, 0),
                ArrowUp: () => stage.nudge(0, -step),
                ArrowDown: () => stage.nudge(0, step),
                Enter: () => stage.dab(event.shiftKey),
            };
            return keys[event.key];
        }

        drop(event) {
            const file = [...event.dataTransfer.files].find((one) => one.type.startsWith("image/"));
            if (!file) return;
            event.preventDefault();
            event.stopPropagation(); // the WebUI would read its generation data
            if (event.shiftKey) this.setBackdropFile(file);
            else this.importMask(file);
        }

        /** A picture pasted while the canvas or a tool has the focus is a mask; text goes where it always does. */
        paste(event) {
            if (!this.root.contains(document.activeElement)) return;
            const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
            if (!file) return;
            event.preventDefault();
            event.stopPropagation();
            this.importMask(file);
        }
    }

    const dataUrl = (file) =>
        new Promise((resolve, reject) => {
            const reader = new FileReader();
            reader.onload = () => resolve(reader.result);
            reader.onerror = reject;
            reader.readAsDataURL(file);
        });

    Object.assign(MaskNoise, {Panel});
})();
