/*
 * The useful range of a strength, drawn below its slider: invisible, useful, broken. The ranges come with each preview,
 * for the model at hand (lib_masknoise/ui/live.py); the slider itself stays what it is, a raw number.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});
    const {element} = MaskNoise.elements;
    const WEIGHT = "concepts[].weight";

    const part = (value, {low, high}) => Math.min(1, Math.max(0, (value - low) / (high - low)));

    /** The place of a value in a range, in per cent: 0 where it is barely visible, 100 the last before pictures break, 130
     *  where more than half of them is lost; by straight lines between places of known per cent, in the logarithm of what
     *  is above the origin, and beyond them by the line through the first and the last one. null where there is none.
     *  As Band.percent in lib_masknoise/calibrate/profile.py. */
    function percent(value, {origin, places}) {
        if (!places.length || value <= origin) return null;
        const log = (strength) => Math.log(strength - origin);
        const last = places.length - 1;
        const right = places.findIndex(([strength]) => value <= strength);
        const [from, to] = right > 0 ? [right - 1, right] : [0, last];
        const near = right < 0 ? last : from;
        const slope = (places[to][1] - places[from][1]) / (log(places[to][0]) - log(places[from][0]));
        return places[near][1] + slope * (log(value) - log(places[near][0]));
    }

    /** What is said of a value. */
    function words(value, band) {
        if (band.visible === null) return "not seen with this model";
        const place = percent(value, band);
        const range = `${short(band.visible)} – ${short(band.top)}`;
        const where =
            place === null && value > band.origin
                ? "no useful range"
                : value <= band.origin
                ? "off"
                : value < band.visible
                  ? "invisible"
                  : value > band.top && band.breaks
                    ? `${band.loses && value >= band.end ? "lost" : "breaks"} (${Math.round(place)} %)`
                    : `${Math.round(place)} %`;
        return `${where} · useful ${range}${band.stale ? " (of other prompts)" : ""}`;
    }

    const short = (value) => String(Number(value.toPrecision(2)));

    /** The parts as a background: from the left invisible, useful, and broken, which darkens up to where it is lost. */
    function colours(band) {
        const at = (share) => `${(100 * share).toFixed(2)}%`;
        const from = part(band.visible ?? band.high, band);
        const to = Math.max(from, band.breaks ? part(band.top, band) : 1);
        const end = band.loses ? `, var(--mn-lost) ${at(Math.max(to, part(band.end, band)))} 100%` : " 100%";
        return (
            "linear-gradient(to right, " +
            `var(--mn-invisible) 0 ${at(from)}, var(--mn-useful) ${at(from)} ${at(to)}, ` +
            `var(--mn-broken) ${at(to)}${end})`
        );
    }

    /** The bands of one canvas and its accordion. ids: elements of gradio's sliders, by the controls' paths. */
    class Bands {
        constructor(root, ids, byId) {
            Object.assign(this, {root, ids, byId, bands: {}});
        }

        /** Ranges by the controls' paths: all others lose theirs. */
        take(bands) {
            this.bands = bands ?? {};
            for (const [path, id] of Object.entries(this.ids)) if (path !== WEIGHT) this.draw(this.byId(id), path);
            for (const slider of this.root.querySelectorAll(".mn-slider"))
                if (slider.querySelector("input[aria-label='Weight']")) this.draw(slider, WEIGHT);
        }

        draw(slider, path) {
            const band = this.bands[path];
            let shown = slider?.querySelector(".mn-band");
            if (!slider || !band) return shown?.remove();
            if (!shown) {
                shown = element("div", {className: "mn-band"}, element("i"), element("span"));
                slider.append(shown);
                slider.addEventListener("input", () => this.write(slider, path));
            }
            shown.dataset.path = path;
            shown.classList.toggle("mn-stale", band.stale);
            shown.title = "invisible, useful, broken: measured for the loaded model by Calibrate";
            shown.firstChild.style.background = colours(band);
            this.write(slider, path);
        }

        write(slider, path) {
            const band = this.bands[path];
            const shown = slider.querySelector(".mn-band");
            const number = slider.querySelector("input[type='number']") ?? slider.querySelector("input");
            if (band && shown) shown.lastChild.textContent = words(Number(number.value), band);
        }
    }

    Object.assign(MaskNoise, {Bands, bandPercent: percent});
})();
