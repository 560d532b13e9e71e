/*
 * The useful range of a strength, drawn below its slider: invisible, useful, broken. The ranges come with each preview,
 * for the model at hand (lib_masknoise/ui/live.py); the slider itself stays what it is, a raw number.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});
    const {element} = MaskNoise;
    const WEIGHT = "concepts[].weight";

    const part = (value, {low, high}) => Math.min(1, Math.max(0, (value - low) / (high - low)));

    /** The place of a value in a range, in per cent: 0 where it is barely visible, 100 the last before pictures break; by
     *  straight lines between places of known per cent, in the logarithm of what is above the origin. null where there
     *  is none. */
    function percent(value, {origin, places}) {
        if (!places.length || value <= origin) return null;
        const log = (strength) => Math.log(strength - origin);
        const [first, last] = [places[0], places[places.length - 1]];
        if (value <= first[0] || value >= last[0])
            return (100 * (log(value) - log(first[0]))) / (log(last[0]) - log(first[0]));
        const right = places.findIndex(([strength]) => value <= strength);
        const [[from, low], [to, high]] = [places[right - 1], places[right]];
        return low + ((high - low) * (log(value) - log(from))) / (log(to) - log(from));
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
                    ? `breaks (${Math.round(place)} %)`
                    : `${Math.round(place)} %`;
        return `${where} · useful ${range}${band.stale ? " (of other prompts)" : ""}`;
    }

    const short = (value) => String(Number(value.toPrecision(2)));

    /** The three parts as a background: from the left invisible, useful, broken. */
    function colours(band) {
        const from = 100 * part(band.visible ?? band.high, band);
        const to = 100 * (band.breaks ? part(band.top, band) : 1);
        const at = (share) => `${share.toFixed(2)}%`;
        return (
            "linear-gradient(to right, " +
            `var(--mn-invisible) 0 ${at(from)}, var(--mn-useful) ${at(from)} ${at(Math.max(from, to))}, ` +
            `var(--mn-broken) ${at(Math.max(from, to))} 100%)`
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
