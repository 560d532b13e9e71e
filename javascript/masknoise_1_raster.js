/*
 * Masks as the library draws them (lib_masknoise/masks.py), so that what is painted is what is computed.
 *
 * A map is {width, height, data}: one float from 0 to 1 a pixel. Operations are the entries of a scene's strokes mask:
 * a stroke, {mask, opacity, erase} or {filter, amount}. Names and formulas follow the library's; tests/browser holds
 * the two against each other. What a scene leaves out has the library's default: the page says which (`useDefaults`).
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});

    const TINY = 1e-6;
    const SAMPLES = 4;
    const DABS_PER_RADIUS = 4;
    const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

    let defaults = {};

    /** The fields of a mask of each kind, of a "stroke", a "stamp" and a "filter", as the library has them. */
    const useDefaults = (given) => (defaults = given);

    const FIRST_KIND = "rect"; // of a mask that names none

    /** A mask, or one of a strokes mask's entries, with every field. */
    const complete = {
        mask: (mask) => ({...defaults[mask.kind ?? FIRST_KIND], ...mask}),
        stroke: (stroke) => ({...defaults.stroke, ...stroke}),
        stamp: (stamp) => ({...defaults.stamp, ...stamp}),
        filter: (filter) => ({...defaults.filter, ...filter}),
    };

    const newMap = (width, height) => ({width, height, data: new Float32Array(width * height)});

    const copyMap = (map) => ({...map, data: map.data.slice()});

    /** S(t) = 3t² − 2t³ on [0, 1]. */
    const smoothstep = (t) => (t <= 0 ? 0 : t >= 1 ? 1 : t * t * (3 - 2 * t));

    /** ∫ S from 0 to t. */
    const smoothstepIntegral = (t) => (t <= 0 ? 0 : t >= 1 ? t - 0.5 : t * t * t * (1 - 0.5 * t));

    /** An edge from 0 to 1 at x = 0, `width` wide, averaged over x ± box/2. */
    function rise(x, width, box = 1) {
        if (width < TINY) return clamp(x / box + 0.5, 0, 1);
        const high = (x + box / 2) / width + 0.5;
        const low = (x - box / 2) / width + 0.5;
        return (smoothstepIntegral(high) - smoothstepIntegral(low)) * (width / box);
    }

    /** A brush's f(d), averaged over d ± ½. */
    function coverage(d, radius, hardness) {
        const width = Math.max(radius * (1 - hardness), 1e-3);
        const inner = radius - width;
        if (d >= radius + 0.5) return 0;
        if (d + 0.5 <= inner) return 1;
        const far = d + 0.5;
        const near = Math.abs(d - 0.5);
        const upper = far - width * smoothstepIntegral((far - inner) / width);
        const lower = near - width * smoothstepIntegral((near - inner) / width);
        return clamp(upper - Math.sign(d - 0.5) * lower, 0, 1);
    }

    // --- Strokes

    /** The pixels [left, right) × [top, bottom), null where there are none. */
    function box(left, top, right, bottom, map) {
        const clipped = {
            left: clamp(Math.floor(left), 0, map.width),
            top: clamp(Math.floor(top), 0, map.height),
            right: clamp(Math.ceil(right), 0, map.width),
            bottom: clamp(Math.ceil(bottom), 0, map.height),
        };
        return clipped.left < clipped.right && clipped.top < clipped.bottom ? clipped : null;
    }

    function union(a, b) {
        if (!a || !b) return a ?? b;
        return {
            left: Math.min(a.left, b.left),
            top: Math.min(a.top, b.top),
            right: Math.max(a.right, b.right),
            bottom: Math.max(a.bottom, b.bottom),
        };
    }

    /**
     * What one stroke covers, drawn point by point into `cover`, which must be 0 wherever the stroke can reach.
     * `style` is the stroke without its points, every field of it.
     */
    class StrokePainter {
        constructor(cover, style) {
            this.cover = cover;
            this.hardness = style.hardness;
            this.flow = style.flow;
            this.unit = style.radius * Math.min(cover.width, cover.height);
            this.last = null;
            this.length = 0;
            this.nextDab = 0;
            this.box = null;
        }

        /** Add a point [x, y] or [x, y, pressure]; returns the box that changed. */
        add(point) {
            const here = {
                x: point[0] * this.cover.width,
                y: point[1] * this.cover.height,
                r: (point[2] ?? 1) * this.unit,
            };
            const from = this.last ?? here;
            this.last = here;
            const changed = this.flow < 1 ? this.dabs(from, here) : this.segment(from, here);
            this.box = union(this.box, changed);
            return changed;
        }

        segment(a, b) {
            const reach = Math.max(a.r, b.r) + 1;
            const {cover, hardness} = this;
            const area = box(
                Math.min(a.x, b.x) - reach,
                Math.min(a.y, b.y) - reach,
                Math.max(a.x, b.x) + reach,
                Math.max(a.y, b.y) + reach,
                cover,
            );
            if (!area) return null;
            const dx = b.x - a.x;
            const dy = b.y - a.y;
            const squared = Math.max(dx * dx + dy * dy, 1e-12);
            for (let row = area.top; row < area.bottom; row++) {
                const y = row + 0.5 - a.y;
                for (let column = area.left; column < area.right; column++) {
                    const x = column + 0.5 - a.x;
                    const along = clamp((x * dx + y * dy) / squared, 0, 1);
                    const ex = x - along * dx;
                    const ey = y - along * dy;
                    const square = ex * ex + ey * ey;
                    if (square >= reach * reach) continue;
                    const i = row * cover.width + column;
                    if (cover.data[i] >= 1) continue;
                    const value = coverage(Math.sqrt(square), a.r + along * (b.r - a.r), hardness);
                    if (value > cover.data[i]) cover.data[i] = value;
                }
            }
            return area;
        }

        /** Dabs at even distances along the whole stroke, the first at its first point. */
        dabs(a, b) {
            const length = Math.hypot(b.x - a.x, b.y - a.y);
            const end = this.length + length;
            let changed = null;
            while (this.nextDab <= end + TINY) {
                const t = length > 0 ? (this.nextDab - this.length) / length : 0;
                changed = union(changed, this.dab(a.x + t * (b.x - a.x), a.y + t * (b.y - a.y), a.r + t * (b.r - a.r)));
                this.nextDab += this.unit / DABS_PER_RADIUS;
            }
            this.length = end;
            return changed;
        }

        dab(cx, cy, r) {
            const {cover, hardness, flow} = this;
            const area = box(cx - r - 1, cy - r - 1, cx + r + 1, cy + r + 1, cover);
            if (!area) return null;
            for (let row = area.top; row < area.bottom; row++) {
                const y = row + 0.5 - cy;
                for (let column = area.left; column < area.right; column++) {
                    const x = column + 0.5 - cx;
                    const value = coverage(Math.sqrt(x * x + y * y), r, hardness);
                    const i = row * cover.width + column;
                    cover.data[i] += flow * value * (1 - cover.data[i]);
                }
            }
            return area;
        }

        /** Make `cover` 0 again where this stroke has drawn. */
        clear() {
            if (!this.box) return;
            const {left, top, right, bottom} = this.box;
            for (let row = top; row < bottom; row++) {
                this.cover.data.fill(0, row * this.cover.width + left, row * this.cover.width + right);
            }
            this.box = null;
        }
    }

    /** Paint what is covered on a map: m ← m + c (1 − m), or m ← m (1 − c) where `erase`; only inside `area`. */
    function compose(map, cover, {opacity, erase}, area) {
        const whole = {left: 0, top: 0, right: map.width, bottom: map.height};
        const {left, top, right, bottom} = area ?? whole;
        for (let row = top; row < bottom; row++) {
            for (let i = row * map.width + left, end = row * map.width + right; i < end; i++) {
                const c = cover.data[i] * opacity;
                if (c === 0) continue;
                map.data[i] = erase ? map.data[i] * (1 - c) : map.data[i] + c * (1 - map.data[i]);
            }
        }
    }

    let scratch = newMap(1, 1);

    function paint(map, stroke) {
        if (scratch.width !== map.width || scratch.height !== map.height) scratch = newMap(map.width, map.height);
        const painter = new StrokePainter(scratch, stroke);
        for (const point of stroke.points) painter.add(point);
        if (painter.box) compose(map, scratch, stroke, painter.box);
        painter.clear();
    }

    // --- Shapes

    /** A map whose pixels are value(x, y) at their centres. */
    function fromFunction(width, height, value) {
        const map = newMap(width, height);
        for (let row = 0; row < height; row++) {
            for (let column = 0; column < width; column++) {
                map.data[row * width + column] = value(column + 0.5, row + 0.5);
            }
        }
        return map;
    }

    /** 1 between two places of an axis of n pixels; edges on the border stay hard. */
    function strip(n, low, high, width) {
        const values = new Float64Array(n);
        if (low >= high) return values;
        for (let i = 0; i < n; i++) {
            const x = i + 0.5;
            const up = low !== 0 ? rise(x - low * n, width) : 1;
            values[i] = high !== 1 ? up - rise(x - high * n, width) : up;
        }
        return values;
    }

    function drawRect(mask, width, height) {
        const {left, top, right, bottom, feather} = mask;
        const edge = feather * Math.min(width, height);
        const columns = strip(width, left, right, edge);
        const rows = strip(height, top, bottom, edge);
        return fromFunction(width, height, (x, y) => columns[x | 0] * rows[y | 0]);
    }

    function drawSplit(mask, width, height) {
        const {axis, from, to, feather} = mask;
        const n = axis === "x" ? width : height;
        const values = strip(n, from, to, feather * n);
        return fromFunction(width, height, (x, y) => values[(axis === "x" ? x : y) | 0]);
    }

    /** Signed distance to the ellipse with half axes a and b: four rounds on osculating circles, as the library. */
    function ellipseDistance(x, y, a, b) {
        x = Math.abs(x);
        y = Math.abs(y);
        let tx = Math.SQRT1_2;
        let ty = Math.SQRT1_2;
        for (let round = 0; round < 4; round++) {
            const ex = ((a * a - b * b) * tx ** 3) / a;
            const ey = ((b * b - a * a) * ty ** 3) / b;
            const stretch = Math.hypot(a * tx - ex, b * ty - ey) / Math.max(Math.hypot(x - ex, y - ey), 1e-9);
            tx = clamp(((x - ex) * stretch + ex) / a, 0, 1);
            ty = clamp(((y - ey) * stretch + ey) / b, 0, 1);
            const norm = Math.max(Math.hypot(tx, ty), 1e-9);
            tx /= norm;
            ty /= norm;
        }
        const outside = (x / a) ** 2 + (y / b) ** 2 >= 1;
        return (outside ? 1 : -1) * Math.hypot(x - a * tx, y - b * ty);
    }

    /** The mean of value(x + dx, y + dy) over 4 × 4 places in a pixel. */
    function supersampled(value, x, y) {
        let sum = 0;
        for (let i = 0; i < SAMPLES * SAMPLES; i++) {
            const dx = ((i % SAMPLES) + 0.5) / SAMPLES - 0.5;
            const dy = (Math.floor(i / SAMPLES) + 0.5) / SAMPLES - 0.5;
            sum += value(x + dx, y + dy);
        }
        return sum / (SAMPLES * SAMPLES);
    }

    function drawEllipse(mask, width, height) {
        const {x: cx, y: cy, rx, ry, angle, feather} = mask;
        const cos = Math.cos((angle * Math.PI) / 180);
        const sin = Math.sin((angle * Math.PI) / 180);
        const edge = feather * Math.min(width, height);
        const distance = (x, y) => {
            x -= cx * width;
            y -= cy * height;
            return ellipseDistance(x * cos + y * sin, y * cos - x * sin, rx * width, ry * height);
        };
        const sample = (x, y) => 1 - rise(distance(x, y), edge, 1 / SAMPLES);
        return fromFunction(width, height, (x, y) => {
            const d = distance(x, y);
            const narrow = edge < SAMPLES && Math.abs(d) < edge / 2 + 1;
            return narrow ? supersampled(sample, x, y) : 1 - rise(d, edge);
        });
    }

    function drawGradient(mask, width, height) {
        const {shape, from, to, smooth} = mask;
        const along = [(to[0] - from[0]) * width, (to[1] - from[1]) * height];
        const length = Math.hypot(...along);
        const value = (x, y) => {
            x = (x - from[0] * width) / length;
            y = (y - from[1] * height) / length;
            const way = shape === "radial" ? Math.hypot(x, y) : (x * along[0] + y * along[1]) / length;
            const t = clamp(1 - way, 0, 1);
            return smooth ? smoothstep(t) : t;
        };
        return fromFunction(width, height, (x, y) => supersampled(value, x, y));
    }

    // --- Pictures

    /** For each of m new elements [source, share] pairs: area averages where n shrinks, Catmull-Rom where it grows. */
    function resizeShares(n, m) {
        return Array.from({length: m}, (_, i) => (m <= n ? areaShares(n, m, i) : splineShares(n, m, i)));
    }

    function areaShares(n, m, i) {
        const [low, high] = [(i * n) / m, ((i + 1) * n) / m];
        const shares = [];
        for (let j = Math.floor(low); j < Math.min(Math.ceil(high), n); j++) {
            shares.push([j, ((Math.min(high, j + 1) - Math.max(low, j)) * m) / n]);
        }
        return shares;
    }

    function splineShares(n, m, i) {
        const place = ((i + 0.5) * n) / m - 0.5;
        const first = Math.floor(place);
        const t = place - first;
        const taps = [
            ((-0.5 * t + 1) * t - 0.5) * t,
            (1.5 * t - 2.5) * t * t + 1,
            ((-1.5 * t + 2) * t + 0.5) * t,
            (0.5 * t - 0.5) * t * t,
        ];
        return taps.map((share, k) => [clamp(first + k - 1, 0, n - 1), share]);
    }

    /** The least and the largest of some values. */
    function range(values) {
        let [low, high] = [Infinity, -Infinity];
        for (const value of values) {
            if (value < low) low = value;
            if (value > high) high = value;
        }
        return [low, high];
    }

    /** A map at another size; values stay within their range. */
    function resize(map, width, height) {
        if (map.width === width && map.height === height) return copyMap(map);
        const [low, high] = range(map.data);
        const wide = newMap(width, map.height);
        const columns = resizeShares(map.width, width);
        for (let y = 0; y < map.height; y++) {
            for (let x = 0; x < width; x++) {
                let sum = 0;
                for (const [j, share] of columns[x]) sum += share * map.data[y * map.width + j];
                wide.data[y * width + x] = sum;
            }
        }
        const result = newMap(width, height);
        const rows = resizeShares(map.height, height);
        for (let y = 0; y < height; y++) {
            for (const [j, share] of rows[y]) {
                for (let x = 0; x < width; x++) result.data[y * width + x] += share * wide.data[j * width + x];
            }
        }
        result.data.forEach((v, i) => (result.data[i] = clamp(v, low, high)));
        return result;
    }

    /** A picture's bytes as a map. */
    function fromBytes({width, height, data}) {
        const map = newMap(width, height);
        for (let i = 0; i < data.length; i++) map.data[i] = data[i] / 255;
        return map;
    }

    function drawImage(mask, width, height, pictures) {
        const drawn = resize(fromBytes(pictures(mask.data, mask)), width, height);
        if (mask.invert) drawn.data.forEach((v, i) => (drawn.data[i] = 1 - v));
        return drawn;
    }

    // --- Filters

    function invert(map) {
        for (let i = 0; i < map.data.length; i++) map.data[i] = 1 - map.data[i];
    }

    /** Blur so that a hard edge becomes a smoothstep `amount` of the shorter side wide; beyond the border as at it. */
    function blur(map, amount) {
        const width = amount * Math.min(map.width, map.height);
        if (width <= 0) return;
        const reach = Math.ceil(width / 2 + 0.5);
        const kernel = Array.from({length: 2 * reach + 1}, (_, i) => {
            const k = i - reach;
            return smoothstep((k + 0.5) / width + 0.5) - smoothstep((k - 0.5) / width + 0.5);
        });
        convolve(map.data, map.height, map.width, map.width, 1, kernel);
        convolve(map.data, map.width, map.height, 1, map.width, kernel);
    }

    /** Convolve `lines` lines of n elements, in place. */
    function convolve(data, lines, n, lineStride, stride, kernel) {
        const reach = (kernel.length - 1) / 2;
        const padded = new Float32Array(n + 2 * reach);
        for (let line = 0; line < lines; line++) {
            const start = line * lineStride;
            for (let i = 0; i < padded.length; i++) padded[i] = data[start + clamp(i - reach, 0, n - 1) * stride];
            for (let i = 0; i < n; i++) {
                let sum = 0;
                for (let k = 0; k < kernel.length; k++) sum += kernel[k] * padded[i + k];
                data[start + i * stride] = clamp(sum, 0, 1);
            }
        }
    }

    // --- All of them

    const SHAPES = {rect: drawRect, split: drawSplit, ellipse: drawEllipse, gradient: drawGradient, image: drawImage};

    /** A mask that is a shape or a picture, as a map. `pictures(data)` gives a decoded picture, {width, height, data} with
     *  a byte a pixel, or throws. */
    function shape(mask, width, height, pictures) {
        const whole = complete.mask(mask);
        return SHAPES[whole.kind](whole, width, height, pictures);
    }

    /** Apply one operation to a map, in place. */
    function apply(map, operation, pictures) {
        if (operation.mask)
            compose(map, shape(operation.mask, map.width, map.height, pictures), complete.stamp(operation));
        else if (operation.filter === "invert") invert(map);
        else if (operation.filter === "blur") blur(map, complete.filter(operation).amount);
        else paint(map, complete.stroke(operation));
    }

    /** Where the mask is flooded from a place: values within `most` of full stop the flood. A map of 0 and 1. */
    function flood(map, x, y, most = 0.9) {
        const {width, height, data} = map;
        const start = y * width + x;
        const full = data[start] >= most;
        const inside = (i) => data[i] >= most === full;
        const region = newMap(width, height);
        const stack = [start];
        region.data[start] = 1;
        while (stack.length) {
            const i = stack.pop();
            const column = i % width;
            const neighbours = [column > 0 && i - 1, column < width - 1 && i + 1, i - width, i + width];
            for (const j of neighbours) {
                if (j === false || j < 0 || j >= data.length || region.data[j] || !inside(j)) continue;
                region.data[j] = 1;
                stack.push(j);
            }
        }
        return dilate(region);
    }

    /** Grow a region by a pixel, so that no seam stays between it and the edge it met. */
    function dilate(region) {
        const {width, height, data} = region;
        const grown = copyMap(region);
        for (let i = 0; i < data.length; i++) {
            if (!data[i]) continue;
            const column = i % width;
            if (column > 0) grown.data[i - 1] = 1;
            if (column < width - 1) grown.data[i + 1] = 1;
            if (i >= width) grown.data[i - width] = 1;
            if (i < width * (height - 1)) grown.data[i + width] = 1;
        }
        return grown;
    }

    MaskNoise.raster = {
        StrokePainter,
        apply,
        clamp,
        complete,
        compose,
        copyMap,
        flood,
        newMap,
        resize,
        shape,
        union,
        useDefaults,
    };
})();
