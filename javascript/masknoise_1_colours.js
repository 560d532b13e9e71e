/*
 * Colour-coded pictures: flat colours, each of which stands for something, and the pixels between them. The same steps
 * as lib_masknoise/scene/colours.py, where they are explained.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});

    const TOLERANCE = 0.05;
    const FLAT = 3;
    const LEAST = 0.002;
    const MOST = 30;
    const CANDIDATES = 4096;
    const NONE = 255;
    const BACKGROUNDS = ["#ffffff", "#000000"];

    const hex = (code) => `#${code.toString(16).padStart(6, "0")}`;
    const levels = (code) => [code >> 16, (code >> 8) & 255, code & 255];
    const apart = (a, b) => Math.max(Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1]), Math.abs(a[2] - b[2]));

    /** The codes (0xrrggbb) of flat colours, the most frequent first. */
    function flatColours({width, height, data}, tolerance) {
        const counts = new Map();
        const differs = (i, j) => {
            for (let c = 0; c < 3; c++) if (Math.abs(data[4 * i + c] - data[4 * j + c]) > FLAT) return true;
            return false;
        };
        for (let y = 0, i = 0; y < height; y++) {
            for (let x = 0; x < width; x++, i++) {
                if (data[4 * i + 3] < 128 || (x && differs(i, i - 1)) || (y && differs(i, i - width))) continue;
                const code = (data[4 * i] << 16) | (data[4 * i + 1] << 8) | data[4 * i + 2];
                counts.set(code, (counts.get(code) ?? 0) + 1);
            }
        }
        const ordered = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, CANDIDATES);
        const found = [];
        for (const [code, count] of ordered) {
            const distances = found.map((one) => apart(levels(one.code), levels(code)));
            const least = Math.min(...distances);
            if (least <= tolerance * 255) found[distances.indexOf(least)].count += count;
            else found.push({code, count});
        }
        const largest = found.sort((a, b) => b.count - a.count).slice(0, MOST);
        return largest.filter(({count}) => count >= LEAST * width * height).map(({code}) => code);
    }

    /** A picture as shares of its flat colours: {colours, shares, first, second, amount}. */
    function unmix(pixels, tolerance = TOLERANCE) {
        const {width, height, data} = pixels;
        const codes = flatColours(pixels, tolerance);
        const colours = codes.map(levels);
        const size = width * height;
        const first = new Uint8Array(size).fill(NONE);
        const second = new Uint8Array(size).fill(NONE);
        const amount = new Uint8Array(size).fill(255);
        const between = [];
        const known = new Map(); // code → the number of its colour, NONE for one in between
        for (let i = 0; i < size && colours.length; i++) {
            if (data[4 * i + 3] < 128) continue;
            const code = (data[4 * i] << 16) | (data[4 * i + 1] << 8) | data[4 * i + 2];
            if (!known.has(code)) known.set(code, nearest(levels(code), colours, tolerance));
            first[i] = known.get(code);
            if (first[i] === NONE) between.push(i);
        }
        const around = neighbourhood(first, width, height);
        for (const i of between) {
            const pixel = [data[4 * i], data[4 * i + 1], data[4 * i + 2]];
            const near = around(i);
            const all = colours.map((_, k) => k).filter((k) => !near || (near >> k) & 1);
            [first[i], second[i], amount[i]] = mixture(pixel, colours, all);
        }
        const shares = colours.map((_, k) => {
            let sum = 0;
            for (let i = 0; i < size; i++) sum += shareAt(i, k, first, second, amount);
            return sum / (255 * size);
        });
        return {width, height, colours: codes.map(hex), shares, first, second, amount};
    }

    /** The number of the colour that a pixel is within the tolerance, NONE where there is none. */
    function nearest(pixel, colours, tolerance) {
        const distances = colours.map((colour) => apart(pixel, colour));
        const least = Math.min(...distances);
        return least <= tolerance * 255 ? distances.indexOf(least) : NONE;
    }

    function shareAt(i, k, first, second, amount) {
        if (first[i] === k) return amount[i];
        return second[i] === k ? 255 - amount[i] : 0;
    }

    /** Which colours are near a pixel, a bit each: those of its block and of the eight around it. */
    function neighbourhood(first, width, height) {
        const side = Math.max(8, Math.floor(Math.max(width, height) / 64));
        const [rows, columns] = [Math.ceil(height / side), Math.ceil(width / side)];
        const blocks = new Int32Array(rows * columns);
        const blockOf = (i) => [Math.floor(Math.floor(i / width) / side), Math.floor((i % width) / side)];
        for (let i = 0; i < first.length; i++) {
            if (first[i] === NONE) continue;
            const [row, column] = blockOf(i);
            blocks[row * columns + column] |= 1 << first[i];
        }
        return (i) => {
            const [row, column] = blockOf(i);
            let near = 0;
            for (let y = Math.max(0, row - 1); y <= Math.min(rows - 1, row + 1); y++) {
                for (let x = Math.max(0, column - 1); x <= Math.min(columns - 1, column + 1); x++) {
                    near |= blocks[y * columns + x];
                }
            }
            return near;
        };
    }

    /** The two of some colours on the line between which a pixel lies best, and the first's share in 255. */
    function mixture(pixel, colours, all) {
        const square = (v) => v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
        const minus = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
        let [best, found] = [Infinity, [0, 0, 255]];
        for (const k of all) {
            const distance = square(minus(pixel, colours[k]));
            if (distance < best) [best, found] = [distance, [k, k, 255]];
        }
        for (const a of all) {
            for (const b of all) {
                if (b <= a) continue;
                const [way, from] = [minus(colours[a], colours[b]), minus(pixel, colours[b])];
                const along = (from[0] * way[0] + from[1] * way[1] + from[2] * way[2]) / square(way);
                const share = Math.min(1, Math.max(0, along));
                const distance = square(minus(from, way.map((v) => v * share)));
                if (distance < best - 1e-9) [best, found] = [distance, [a, b, Math.round(share * 255)]];
            }
        }
        return found;
    }

    /** The places of a colour of an unmixed picture as a decoded one: {width, height, data}, a byte a pixel. */
    function mapOf({width, height, colours, first, second, amount}, colour, tolerance = TOLERANCE) {
        const wanted = levels(parseInt(colour.slice(1), 16));
        const distances = colours.map((one) => apart(levels(parseInt(one.slice(1), 16)), wanted));
        const k = distances.indexOf(Math.min(...distances));
        if (!(distances[k] <= tolerance * 255)) throw new Error(`${colour} is no flat colour of the picture`);
        return {width, height, data: first.map((_, i) => shareAt(i, k, first, second, amount))};
    }

    MaskNoise.colours = {BACKGROUNDS, mapOf, unmix};
})();
