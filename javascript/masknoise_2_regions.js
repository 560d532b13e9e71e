/*
 * Shapes that can be taken hold of after they were drawn: rectangles, splits, ellipses and gradients. Pure functions of
 * masks as a scene has them; places are points of the picture, 0 to 1, and `size` is the picture's {width, height}.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});
    const {clamp, complete} = MaskNoise.raster;

    const SMALLEST = 0.002; // of the picture: no shape gets narrower
    const DIGITS = 1e4; // of a coordinate: a ten-thousandth of the picture, a hundredth of a latent's pixel at 1024²
    const TURN = 24; // CSS pixels between an ellipse and the handle that turns it

    /** A coordinate as finely as a latent can show it. */
    const rounded = (value) => Math.round(value * DIGITS) / DIGITS;

    const between = (a, b) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];

    // --- Numbers that a person can type

    /** A number of a shape: `of(mask)` and `put(mask, value)`. In percent, unless it has another unit. */
    const number = (label, of, put, {low = 0, high = 1, unit = "%"} = {}) => ({label, of, put, low, high, unit});

    const field = (name, label, bounds) =>
        number(
            label,
            (mask) => mask[name],
            (mask, value) => ({[name]: value}),
            bounds,
        );

    const FEATHER = field("feather", "Soft edge");

    const coordinate = (name, axis, label) =>
        number(
            label,
            (mask) => mask[name][axis],
            (mask, value) => ({[name]: mask[name].map((old, i) => (i === axis ? value : old))}),
        );

    // --- Rectangles

    const RECT = {
        name: "Rectangle",
        numbers: [
            field("left", "Left"),
            field("top", "Top"),
            field("right", "Right"),
            field("bottom", "Bottom"),
            FEATHER,
        ],
        handles({left, top, right, bottom}) {
            const [x, y] = between([left, top], [right, bottom]);
            return {
                ...{nw: [left, top], n: [x, top], ne: [right, top], e: [right, y]},
                ...{se: [right, bottom], s: [x, bottom], sw: [left, bottom], w: [left, y]},
            };
        },
        dragged(mask, handle, [x, y]) {
            const changes = {};
            if (handle.includes("w")) changes.left = clamp(x, 0, mask.right - SMALLEST);
            if (handle.includes("e")) changes.right = clamp(x, mask.left + SMALLEST, 1);
            if (handle.includes("n")) changes.top = clamp(y, 0, mask.bottom - SMALLEST);
            if (handle.includes("s")) changes.bottom = clamp(y, mask.top + SMALLEST, 1);
            return changes;
        },
        moved({left, top, right, bottom}, dx, dy) {
            dx = clamp(dx, -left, 1 - right);
            dy = clamp(dy, -top, 1 - bottom);
            return {left: left + dx, top: top + dy, right: right + dx, bottom: bottom + dy};
        },
        grown: (mask, dx, dy) => RECT.dragged(mask, "se", [mask.right + dx, mask.bottom + dy]),
        contains: ({left, top, right, bottom}, [x, y]) => x >= left && x <= right && y >= top && y <= bottom,
        trace(path, {left, top, right, bottom}, frame) {
            const [x, y] = toFrame([left, top], frame);
            path.rect(x, y, (right - left) * frame.width, (bottom - top) * frame.height);
        },
    };

    // --- Splits

    const SPLIT = {
        name: "Split",
        numbers: [field("from", "From"), field("to", "To"), FEATHER],
        handles: ({axis, from, to}) => ({from: onAxis(axis, from), to: onAxis(axis, to)}),
        dragged({axis, from, to}, handle, place) {
            const value = place[axis === "x" ? 0 : 1];
            if (handle === "from") return {from: clamp(value, 0, to - SMALLEST)};
            return {to: clamp(value, from + SMALLEST, 1)};
        },
        moved({axis, from, to}, dx, dy) {
            const by = clamp(axis === "x" ? dx : dy, -from, 1 - to);
            return {from: from + by, to: to + by};
        },
        grown: (mask, dx, dy) => SPLIT.dragged(mask, "to", [mask.to + dx, mask.to + dy]),
        contains({axis, from, to}, [x, y]) {
            const value = axis === "x" ? x : y;
            return value >= from && value <= to;
        },
        trace(path, {axis, from, to}, frame) {
            const across = axis === "x" ? {top: 0, bottom: 1} : {left: 0, right: 1};
            const along = axis === "x" ? {left: from, right: to} : {top: from, bottom: to};
            RECT.trace(path, {...across, ...along}, frame);
        },
    };

    const onAxis = (axis, value) => (axis === "x" ? [value, 0.5] : [0.5, value]);

    // --- Ellipses: pixels count, not fractions, because they may be turned

    const HALF_AXIS = {low: 0.001, high: 2};

    const ELLIPSE = {
        name: "Ellipse",
        numbers: [
            field("x", "Centre x"),
            field("y", "Centre y"),
            field("rx", "Half width", HALF_AXIS),
            field("ry", "Half height", HALF_AXIS),
            field("angle", "Turned by", {low: -360, high: 360, unit: "°"}),
            FEATHER,
        ],
        handles(mask, size, frame) {
            const {rx, ry} = mask;
            const out = (TURN * size.height) / frame.height; // of the picture's pixels
            const ends = {
                ...{e: [rx * size.width, 0], w: [-rx * size.width, 0]},
                ...{s: [0, ry * size.height], n: [0, -ry * size.height], turn: [0, -ry * size.height - out]},
            };
            return Object.fromEntries(Object.entries(ends).map(([name, end]) => [name, outOfEllipse(mask, end, size)]));
        },
        dragged(mask, handle, place, size) {
            const [along, across] = intoEllipse(mask, place, size);
            const half = (pixels, side) => clamp(Math.abs(pixels) / side, SMALLEST, HALF_AXIS.high);
            if (handle === "turn") return {angle: turned(mask.angle + degrees(Math.atan2(along, -across)))};
            return handle === "e" || handle === "w" ? {rx: half(along, size.width)} : {ry: half(across, size.height)};
        },
        moved: ({x, y}, dx, dy) => ({x: clamp(x + dx, 0, 1), y: clamp(y + dy, 0, 1)}),
        grown: ({rx, ry}, dx, dy) => ({
            rx: clamp(rx + dx, SMALLEST, HALF_AXIS.high),
            ry: clamp(ry + dy, SMALLEST, HALF_AXIS.high),
        }),
        contains(mask, place, size) {
            const [along, across] = intoEllipse(mask, place, size);
            return (along / (mask.rx * size.width)) ** 2 + (across / (mask.ry * size.height)) ** 2 <= 1;
        },
        trace(path, {x, y, rx, ry, angle}, frame) {
            const centre = toFrame([x, y], frame);
            path.ellipse(...centre, rx * frame.width, ry * frame.height, (angle * Math.PI) / 180, 0, 2 * Math.PI);
        },
    };

    const degrees = (radians) => (radians * 180) / Math.PI;

    /** An angle from -180 to 180, in tenths of a degree. */
    const turned = (angle) => Math.round(10 * (((angle + 540) % 360) - 180)) / 10;

    const direction = ({angle}) => [Math.cos((angle * Math.PI) / 180), Math.sin((angle * Math.PI) / 180)];

    /** A place as pixels along an ellipse's two axes, from its centre. */
    function intoEllipse(mask, [x, y], {width, height}) {
        const [cos, sin] = direction(mask);
        const [dx, dy] = [(x - mask.x) * width, (y - mask.y) * height];
        return [dx * cos + dy * sin, dy * cos - dx * sin];
    }

    function outOfEllipse(mask, [along, across], {width, height}) {
        const [cos, sin] = direction(mask);
        return [mask.x + (along * cos - across * sin) / width, mask.y + (along * sin + across * cos) / height];
    }

    // --- Gradients

    const NEAR = 0.06; // of the picture's shorter side: a gradient is taken hold of along its line

    const GRADIENT = {
        name: "Gradient",
        numbers: [
            coordinate("from", 0, "Full at x"),
            coordinate("from", 1, "Full at y"),
            coordinate("to", 0, "Nothing at x"),
            coordinate("to", 1, "Nothing at y"),
        ],
        handles: ({from, to}) => ({from, to}),
        dragged: (mask, handle, place) => ({[handle]: apart(place.map(unit), mask[handle === "from" ? "to" : "from"])}),
        moved({from, to}, dx, dy) {
            const by = [dx, dy].map((d, i) => clamp(d, -Math.min(from[i], to[i]), 1 - Math.max(from[i], to[i])));
            return {from: from.map((v, i) => v + by[i]), to: to.map((v, i) => v + by[i])};
        },
        grown: (mask, dx, dy) => GRADIENT.dragged(mask, "to", [mask.to[0] + dx, mask.to[1] + dy]),
        contains({shape, from, to}, place, {width, height}) {
            const pixels = ([x, y]) => [x * width, y * height];
            const [a, b, p] = [from, to, place].map(pixels);
            if (shape === "radial") return Math.hypot(p[0] - a[0], p[1] - a[1]) <= Math.hypot(b[0] - a[0], b[1] - a[1]);
            return MaskNoise.segmentDistance(p, a, b) <= NEAR * Math.min(width, height);
        },
        trace(path, {shape, from, to}, frame) {
            const [a, b] = [toFrame(from, frame), toFrame(to, frame)];
            path.moveTo(...a);
            path.lineTo(...b);
            if (shape !== "radial") return;
            const radius = Math.hypot(b[0] - a[0], b[1] - a[1]);
            path.moveTo(a[0] + radius, a[1]);
            path.arc(...a, radius, 0, 2 * Math.PI);
        },
    };

    const unit = (value) => clamp(value, 0, 1);

    /** A place, moved a little where it is the other one: a gradient needs two. */
    function apart(place, other) {
        const distance = Math.hypot(place[0] - other[0], place[1] - other[1]);
        return distance < SMALLEST ? [other[0] + (other[0] < 0.5 ? SMALLEST : -SMALLEST), other[1]] : place;
    }

    // --- All of them

    const KINDS = {rect: RECT, split: SPLIT, ellipse: ELLIPSE, gradient: GRADIENT};

    const toFrame = ([x, y], frame) => [frame.x + x * frame.width, frame.y + y * frame.height];

    const kindOf = (mask) => KINDS[complete.mask(mask).kind];

    /** A mask with some fields changed; numbers as finely as they count. */
    function changed(mask, changes) {
        const tidy = (value) => (Array.isArray(value) ? value.map(rounded) : rounded(value));
        return {...mask, ...Object.fromEntries(Object.entries(changes).map(([name, value]) => [name, tidy(value)]))};
    }

    const regions = {
        /** Whether a mask is a shape that can be moved. */
        is: (mask) => Boolean(mask && kindOf(mask)),

        name: (mask) => kindOf(mask).name,

        /** Where a shape can be pulled: places by their names. `frame` is the picture's place on the screen. */
        handles: (mask, size, frame) => kindOf(mask).handles(complete.mask(mask), size, frame),

        /** The shape with one of its handles at a place. */
        dragged: (mask, handle, place, size) =>
            changed(mask, kindOf(mask).dragged(complete.mask(mask), handle, place, size)),

        /** The shape elsewhere, as far as the picture goes. */
        moved: (mask, dx, dy) => changed(mask, kindOf(mask).moved(complete.mask(mask), dx, dy)),

        /** The shape larger or smaller by so much. */
        grown: (mask, dx, dy) => changed(mask, kindOf(mask).grown(complete.mask(mask), dx, dy)),

        contains: (mask, place, size) => kindOf(mask).contains(complete.mask(mask), place, size),

        /** Its outline on the screen. */
        outline(mask, frame) {
            const path = new Path2D();
            kindOf(mask).trace(path, complete.mask(mask), frame);
            return path;
        },

        /** The numbers that describe it: {label, low, high, unit, value, put(value) → mask}. */
        numbers(mask) {
            const whole = complete.mask(mask);
            return kindOf(mask).numbers.map(({label, of, put, low, high, unit}) => ({
                ...{label, low, high, unit, value: of(whole)},
                put: (value) => settled(changed(mask, put(whole, clamp(value, low, high))), put(whole, value)),
            }));
        },
    };

    /** Edges that have passed each other, pushed apart: what was just changed stays. */
    function settled(mask, changes) {
        const whole = complete.mask(mask);
        const pairs =
            {
                rect: [
                    ["left", "right"],
                    ["top", "bottom"],
                ],
                split: [["from", "to"]],
            }[whole.kind] ?? [];
        for (const [low, high] of pairs) {
            if (whole[low] + SMALLEST <= whole[high]) continue;
            const kept = low in changes ? low : high;
            const other = kept === low ? high : low;
            mask = changed(mask, {[other]: unit(whole[kept] + (kept === low ? SMALLEST : -SMALLEST))});
        }
        return whole.kind === "gradient" ? changed(mask, {to: apart(whole.to, whole.from)}) : mask;
    }

    Object.assign(MaskNoise, {regions, rounded});
})();
