/*
 * img2img's input picture: painting starts from it. It is the backdrop as soon as it is there, as it will lie in the
 * picture that is made, and where that takes its size from it, the canvas does too.
 */
(() => {
    "use strict";
    const MaskNoise = (window.MaskNoise ??= {});

    const FITS = ["fill", "cover", "contain", "fill"]; // by the host's resize modes
    const PARTS = /upscale/i; // scripts that make the picture in parts: the masks lie over all of it

    class InputPicture {
        /** config: the host's ids (lib_masknoise/ui/accordions.py); byId, app: how to find them. */
        constructor(config, panel, byId, app) {
            Object.assign(this, {config, panel, byId, app});
            this.url = null;
        }

        /** The picture of the tab that is open, null where it has none. */
        get image() {
            for (const id of this.config.pictures) {
                const box = this.byId(id);
                if (!box?.getClientRects().length) continue;
                const image = [...box.querySelectorAll("img")].find(({naturalWidth}) => naturalWidth > 1);
                return image ?? null;
            }
            return null;
        }

        shown(id) {
            const place = this.byId(id);
            return Boolean(place?.getClientRects().length);
        }

        checked(id) {
            return [...(this.byId(id)?.querySelectorAll("input") ?? [])].findIndex((input) => input.checked);
        }

        /** Whether masks lie over the input picture, of which a part is made at a time. */
        get inParts() {
            const script = this.app().querySelector(this.config.script)?.value ?? "";
            return PARTS.test(script) || (this.shown(this.config.area) && this.checked(this.config.area) === 1);
        }

        get fit() {
            return this.inParts ? "fill" : (FITS[this.checked(this.config.mode)] ?? "fill");
        }

        /** The size that the canvas takes from the picture, null where the host's sliders say it. */
        size() {
            const {image} = this;
            if (!image) return null;
            const own = [image.naturalWidth, image.naturalHeight];
            if (this.inParts) return own;
            if (!this.shown(this.config.by)) return null;
            const scale = Number(this.byId(this.config.scale)?.querySelector("input[type=number]")?.value) || 1;
            return own.map((n) => Math.max(8, Math.floor(n * scale) - (Math.floor(n * scale) % 8)));
        }

        /** Take over a picture that is new, and how it is resized; a backdrop that was chosen since stays. */
        look() {
            if (this.hidden) return; // nothing can be said about the picture of a tab out of sight
            const {panel, image} = this;
            const url = image?.getAttribute("src") ?? null;
            const own = panel.wanted === this.url;
            if (url !== this.url) {
                const before = this.url;
                this.url = url;
                if (panel.following) return;
                if (url) panel.setBackdrop(url, this.fit);
                else if (panel.wanted === before) panel.setBackdrop(null);
            } else if (url && own && panel.stage.backdrop && panel.stage.backdropFit !== this.fit) {
                panel.stage.backdropFit = this.fit;
                panel.stage.update();
            }
        }

        /** Whether no place of a picture is in sight. */
        get hidden() {
            return !this.config.pictures.some((id) => this.shown(id));
        }
    }

    Object.assign(MaskNoise, {InputPicture});
})();
