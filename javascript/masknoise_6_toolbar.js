/*
 * The tools above the stage and their settings.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});
    const {PERCENT, checkbox, element, iconButton, slider} = MaskNoise.elements;

    const TOOLS = [
        ["brush", "Brush", "B"],
        ["eraser", "Eraser", "E"],
        ["fill", "Fill", "F"],
        ["line", "Line", "L"],
        ["rect", "Rectangle", "R"],
        ["ellipse", "Ellipse", "O"],
        ["gradient", "Gradient", "G"],
        ["move", "Move shapes", "V"],
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
            this.gradient = this.choice("Gradient shape", ["linear", "radial"], (gradient) =>
                editor.setTool({gradient}),
            );
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
                typed: PERCENT,
                oninput: (value) => editor.setTool({[name]: value}),
            });
            return {
                size: slider("Size", {
                    min: SIZES.toSlider(SIZES.low),
                    max: SIZES.toSlider(SIZES.high),
                    step: 0.01,
                    typed: {
                        to: (value) => Math.max(1, Math.round(SIZES.fromSlider(value) * this.pixels())),
                        from: (pixels) => SIZES.toSlider(pixels / this.pixels()),
                        unit: "px",
                    },
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

    Object.assign(MaskNoise, {SIZES, TOOLS, Toolbar});
})();
