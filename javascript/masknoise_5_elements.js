/*
 * The elements that the panel is made of: buttons, sliders, numbers, icons.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});

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
        move: "M12 3v18M3 12h18M9 6l3-3 3 3M9 18l3 3 3-3M6 9l-3 3 3 3M18 9l3 3-3 3",
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

    /** How a value is typed: as it is, or in percent. */
    const AS_IS = {to: (value) => round(value, 2), from: (number) => number, unit: ""};
    const PERCENT = {to: (value) => round(value * 100, 2), from: (number) => number / 100, unit: "%"};

    const round = (value, digits) => Number(value.toFixed(digits));

    const limited = (value, low, high) => Math.min(Math.max(value, low), high);

    /** A field for a number; what is typed counts when Enter is pressed or the field is left, and `set` waits for that. */
    function numberField(label, {min, max, step, typed, oninput}) {
        const [low, high] = [typed.to(min), typed.to(max)];
        let typing = false;
        const input = element("input", {
            type: "number",
            className: "mn-number",
            min: low,
            max: high,
            step,
            "aria-label": typed.unit ? `${label} in ${typed.unit}` : `${label} as a number`,
            oninput: () => (typing = true),
            onblur: () => (typing = false),
            onchange: () => {
                typing = false;
                if (input.value === "") return;
                input.value = limited(Number(input.value), low, high);
                oninput(typed.from(Number(input.value)));
            },
        });
        const set = (value) => typing || setValue(input, String(typed.to(value)));
        return {input, set};
    }

    /** A slider with its name and its value as a number that can be typed. */
    function slider(label, {min, max, step, typed = AS_IS, oninput}) {
        const put = (value) => {
            oninput(value);
            set(value);
        };
        const number = numberField(label, {min, max, step: "any", typed, oninput: put});
        const input = element("input", {
            type: "range",
            min,
            max,
            step,
            "aria-label": label,
            oninput: () => put(Number(input.value)),
        });
        const unit = element("span", {className: "mn-unit"}, typed.unit);
        const node = element("div", {className: "mn-slider"}, element("span", {}, label), input, number.input, unit);
        const set = (value) => {
            input.value = value;
            number.set(value);
        };
        return {node, set};
    }

    /** A number without a slider: typed, or pulled by its name, a step a pixel. */
    function dragNumber(label, {min, max, step, typed, oninput}) {
        const number = numberField(label, {min, max, step, typed, oninput});
        const name = element("span", {className: "mn-drag", title: "Drag sideways to change"}, label);
        const value = (pixels) => limited(typed.from(name.start + pixels * step), min, max);
        name.addEventListener("pointerdown", (event) => {
            event.preventDefault();
            name.setPointerCapture(event.pointerId);
            [name.from, name.start] = [event.clientX, Number(number.input.value)];
        });
        name.addEventListener("pointermove", (event) => {
            if (name.hasPointerCapture(event.pointerId)) oninput(value(event.clientX - name.from));
        });
        const unit = element("span", {className: "mn-unit"}, typed.unit);
        return {...number, node: element("div", {className: "mn-slider"}, name, number.input, unit)};
    }

    function checkbox(label, title, onchange) {
        const input = element("input", {type: "checkbox", onchange: () => onchange(input.checked)});
        return {input, node: element("label", {className: "mn-check", title}, input, label)};
    }

    /** A text field's value, left alone while it says the same: the caret stays. */
    function setValue(field, value) {
        if (field.value !== value) field.value = value;
    }

    MaskNoise.elements = {
        AS_IS,
        PERCENT,
        checkbox,
        dragNumber,
        element,
        iconButton,
        setIcon,
        setValue,
        slider,
        textButton,
    };
})();
