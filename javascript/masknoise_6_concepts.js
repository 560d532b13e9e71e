/*
 * The list of concepts beside the stage: a card for each.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});
    const {PERCENT, checkbox, element, iconButton, setIcon, setValue, slider, textButton} = MaskNoise.elements;

    const [HIDE, SHOW] = ["Hide on the canvas", "Show on the canvas"];

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
            this.prompt = this.text("Prompt", "what this mask should show", 2, (value) =>
                editor.setField(now(), "prompt", value),
            );
            this.negative = this.text("Negative prompt", "what to avoid here (optional)", 1, (value) =>
                editor.setField(now(), "negative", value),
            );
            this.tokens = element("span", {
                className: "mn-tokens",
                title: "Tokens used, of those the model reads at once",
            });
            const {low, high, step} = panel.weight;
            this.weight = slider("Weight", {
                min: low,
                max: high,
                step,
                oninput: (value) => editor.setField(now(), "weight", value),
            });
            this.steps = [
                ["start", "Sets in", 0],
                ["end", "Stops", 1],
            ].map(([name, label, usual]) => [name, usual, this.share(name, label, usual, now)]);
            this.on = checkbox("On", "Whether this concept acts on the image", (on) =>
                editor.setField(now(), "enabled", on ? undefined : false),
            );
            this.opacity = slider("Overlay", {
                min: 0.1,
                max: 1,
                step: 0.05,
                typed: PERCENT,
                oninput: (opacity) => view({opacity}),
            });
            this.opacity.node.title = "How strongly the layer is drawn here; changes no image";
            this.eye = iconButton("eye", HIDE, () => view({visible: !editor.view(now()).visible}));
            this.lock = iconButton("unlock", "Lock", () => view({locked: !editor.view(now()).locked}));
            this.up = iconButton("up", "Move up the list (further to the front)", () => editor.move(now(), 1));
            this.down = iconButton("down", "Move down the list (further back)", () => editor.move(now(), -1));
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
                    this.on.node,
                    element("div", {className: "mn-group"}, ...actions),
                ),
                this.prompt,
                this.negative,
                element("div", {className: "mn-sliders"}, this.weight.node, this.opacity.node),
                element("div", {className: "mn-sliders"}, ...this.steps.map(([, , one]) => one.node)),
                this.notes,
            );
            this.node.addEventListener("pointerdown", () => editor.activeId !== this.id && editor.select(this.id));
        }

        /** A slider for one end of the sampling steps in which the concept acts; the other end gives way. */
        share(name, label, usual, now) {
            const {editor} = this.panel;
            const made = slider(label, {
                min: 0,
                max: 1,
                step: 0.01,
                typed: PERCENT,
                oninput: (value) => {
                    editor.setField(now(), name, value === usual ? undefined : value);
                    const {start = 0, end = 1} = now().fields;
                    if (start <= end) return;
                    const [other, otherUsual] = name === "start" ? ["end", 1] : ["start", 0];
                    editor.setField(now(), other, value === otherUsual ? undefined : value);
                },
            });
            made.node.title =
                "The part of the sampling steps in which the concept acts: early steps decide where things are, late ones details";
            return made;
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
            this.node.classList.toggle("mn-off", fields.enabled === false);
            this.on.input.checked = fields.enabled !== false;
            this.on.input.setAttribute("aria-label", `Concept ${i + 1} acts on the image`);
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
            for (const [name, usual, one] of this.steps) one.set(fields[name] ?? usual);
            this.opacity.set(view.opacity);
            setIcon(this.eye, view.visible ? "eye" : "hidden", view.visible ? HIDE : SHOW);
            this.eye.setAttribute("aria-pressed", String(!view.visible));
            setIcon(this.lock, view.locked ? "lock" : "unlock", view.locked ? "Unlock" : "Lock");
            this.lock.setAttribute("aria-pressed", String(view.locked));
            this.up.disabled = i === count - 1;
            this.down.disabled = i === 0;
            this.tokens.textContent = tokens[fields.prompt ?? ""] ?? "";
            this.notes.textContent = notesOf(fields, view).join(" ");
        }
    }

    /** What a card must say about its concept. */
    function notesOf({enabled, keyframes = []}, {visible}) {
        const notes = [];
        if (enabled === false) notes.push("Off: the image is made as if this concept were not there.");
        else if (!visible) notes.push("Hidden here only: it still acts on the image.");
        if (keyframes.length) {
            notes.push(`Has ${keyframes.length} keyframes: they are kept; the canvas shows the mask outside them.`);
        }
        return notes;
    }

    /** A prompt for each line, and what comes after "common:", null without such a line. */
    function linesOf(text) {
        const lines = text.split("\n").map((line) => line.trim());
        const common = lines.map((line) => /^common\s*:(.*)$/i.exec(line)).find(Boolean);
        return {
            common: common ? common[1].trim() : null,
            prompts: lines.filter((line) => line && !/^common\s*:/i.test(line)),
        };
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
            this.lines = this.asLines();
            this.start = element("div", {className: "mn-group mn-start"}, this.add, this.splits, this.lines);
            this.node = element("div", {className: "mn-concepts"}, this.empty, this.list);
        }

        /** All prompts at once, a line each: to write them, or to paste the lines of another extension's prompt. */
        asLines() {
            const text = element("textarea", {
                className: "mn-text",
                rows: 4,
                placeholder: "one concept a line\ncommon: what all of them begin with",
                "aria-label": "Concepts as lines",
            });
            const use = textButton("Use these lines", "A concept for each line; masks that are there stay", () => {
                const {common, prompts} = linesOf(text.value);
                this.panel.editor.setPrompts(prompts);
                if (common !== null) this.panel.setCommon(common);
            });
            const box = element("details", {className: "mn-lines"}, element("summary", {}, "From lines…"), text, use);
            box.addEventListener("toggle", () => {
                if (box.open) text.value = this.panel.editor.layers.map(({fields}) => fields.prompt ?? "").join("\n");
            });
            return box;
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
            // As in drawing programs, what is in front is on top of the list.
            layers.forEach((layer, i) => {
                if (!this.cards.has(layer.id)) this.cards.set(layer.id, new Card(this.panel, layer));
                this.cards.get(layer.id).update(layer, i, layers.length);
            });
            [...layers].reverse().forEach((layer, row) => {
                const {node} = this.cards.get(layer.id);
                if (this.list.children[row] !== node) this.list.insertBefore(node, this.list.children[row] ?? null);
            });
            this.empty.hidden = layers.length > 0;
            this.add.disabled = editor.full;
        }
    }

    Object.assign(MaskNoise, {ConceptList});
})();
